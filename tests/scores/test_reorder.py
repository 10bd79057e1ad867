"""Reordering one ranking by another, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from moesaic.allocate import GlobalMilp, Pmq
from moesaic.allocate.choices import shapes_of
from moesaic.records import Budget, CostTable, Scores
from moesaic.scores.max_var import MaxVar
from moesaic.scores.quant_error import QuantError
from moesaic.scores.reorder import Reorder, ReorderCosts, ranking
from moesaic.scores.router_norm import RouterNorm
from tests.scores.made_up import MadeUp, random_weights

EMPTY = MadeUp({"L": torch.ones(4, 2)})


@dataclass(frozen=True)
class Given:
    """A rule that says what the test wants."""

    name: str
    values: tuple[float, ...]

    def __call__(self, weights: object) -> Scores:
        """The values, as those of layer L."""
        return Scores(self.name, {"L": self.values}, {self.name: "known"})


def reordered(base: tuple[float, ...], by: tuple[float, ...], **knobs: object) -> list[int]:
    """The ranking that comes out."""
    scores = Reorder(Given("base", base), Given("by", by), **knobs)(EMPTY)  # type: ignore[arg-type]
    return ranking(scores.layers["L"])


def test_wide_expert_is_lifted_above_the_first_it_exceeds() -> None:
    """Ranking 0 1 2 3; expert 3 (variance 6) exceeds three times that of 1 (2) but not of 0 (3): it goes before 1."""
    assert reordered((9, 8, 7, 6), (3, 2, 2.5, 6)) == [0, 3, 1, 2]


def test_equality_lifts_in_the_paper_and_not_in_the_code() -> None:
    """At exactly zeta times, the text (>=) lifts and the released code (<) does not."""
    assert reordered((2, 1), (1, 3)) == [1, 0]
    assert reordered((2, 1), (1, 3), single_sweep=True) == [0, 1]


@given(data=st.data(), spread=st.lists(st.floats(0.01, 100.0), unique=True, max_size=10))
def test_one_sweep_is_enough_where_nothing_is_exactly_zeta_times(data: st.DataObject, spread: list[float]) -> None:
    """The two forms differ at exact equality only: a sweep from the end leaves nothing that a second one would lift."""
    base = tuple(map(float, data.draw(st.permutations(range(len(spread))))))
    assume(not any(a == 3 * b or abs(a - 3 * b) < 1e-9 for a in spread for b in spread))
    assert reordered(base, tuple(spread)) == reordered(base, tuple(spread), single_sweep=True)


def test_zeta_decides_who_moves() -> None:
    """A larger zeta moves fewer experts."""
    assert reordered((3, 2, 1), (1, 1, 4), zeta=3.0) == [2, 0, 1]
    assert reordered((3, 2, 1), (1, 1, 4), zeta=5.0) == [0, 1, 2]


def test_zero_variances_move_nobody() -> None:
    """With no variance at all nothing exceeds anything, and the loop ends."""
    assert reordered((1, 2, 3), (0, 0, 0)) == [2, 1, 0]


def test_scores_are_places_and_details_tell_the_story() -> None:
    """The best expert scores the number of experts, the last 1; both base scores and the lifted count are kept."""
    rule = Reorder(Given("base", (2.0, 1.0)), Given("by", (1.0, 9.0)))
    scores = rule(EMPTY)
    assert scores.layers["L"] == (1.0, 2.0)
    assert scores.rule == "base+by"
    assert scores.details["lifted"] == {"L": 1}
    assert scores.details["zeta"] == 3.0
    assert scores.details["parts"] == {"base": {"L": [2.0, 1.0]}, "by": {"L": [1.0, 9.0]}}


def test_says_which_router_norm_was_used() -> None:
    """The base rule's own remark survives the wrapping."""
    weights = MadeUp({"L": torch.eye(2)}, {"L": [torch.ones(1, 2), torch.ones(1, 2)]})
    details = Reorder(RouterNorm(), MaxVar())(weights).details
    assert "final norm" in str(details)


@pytest.mark.parametrize("zeta", [1.0, 0.5, -3.0, float("nan")])
def test_zeta_must_exceed_one(zeta: float) -> None:
    """With zeta at or below one the repeated form would not end; it is refused with the value."""
    with pytest.raises(ValueError, match="above 1, got"):
        Reorder(RouterNorm(), MaxVar(), zeta=zeta)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0]), max_size=8).map(tuple))
def test_ranking_is_best_first_ties_by_index(scores: tuple[float, ...]) -> None:
    """Ranking is a permutation in descending score, equal scores in ascending index."""
    order = ranking(scores)
    assert sorted(order) == list(range(len(scores)))
    for first, second in pairwise(order):
        assert (scores[first], -first) > (scores[second], -second)


@dataclass(frozen=True)
class GivenCosts:
    """A rule of costs that says what the test wants."""

    table: CostTable

    def __call__(self, weights: object) -> CostTable:
        """The table."""
        return self.table


def test_costs_go_by_place() -> None:
    """Experts save 9, 8, 7, 6 by bits; the last is lifted to the second place and takes over what stood there."""
    table = CostTable("base", (1, 3), {"L": ((9.0, 0.0), (8.0, 0.0), (7.0, 0.0), (6.0, 0.0))})
    rule = ReorderCosts(GivenCosts(table), Given("by", (3, 2, 2.5, 6)))
    found = rule(EMPTY)
    assert found.layers["L"] == ((9.0, 0.0), (7.0, 0.0), (6.0, 0.0), (8.0, 0.0))
    assert found.rule == "base+by"
    assert found.details["lifted"] == {"L": 1}


def test_factors_move_with_the_errors() -> None:
    """Raw costs keep their factors beside them, and entries of a layer are lifted by the layer's expert."""
    factors = {f"L/{entry}": (1.0, 2.0) for entry in ("gate_up", "down")}
    rows = {name: ((4.0, 0.0), (1.0, 0.0)) for name in factors}
    found = ReorderCosts(GivenCosts(CostTable("b", (1, 3), rows, {}, factors, factors)), Given("by", (1, 9)))(EMPTY)
    for name in factors:
        assert found.layers[name] == ((1.0, 0.0), (4.0, 0.0))
        assert found.frequency[name] == found.routing_weight[name] == (2.0, 1.0)


@pytest.mark.parametrize("allocator", [Pmq(), GlobalMilp()])
def test_reordered_costs_keep_the_widths_of_every_layer(allocator: Pmq | GlobalMilp) -> None:
    """Whatever the allocator gives a layer, it gives the same widths to other experts of it."""
    weights = random_weights()
    plain = QuantError()(weights)
    lifted = ReorderCosts(QuantError(), MaxVar())(weights)
    shapes = shapes_of(plain)
    plans = [allocator(shapes, Budget(2), table) for table in (plain, lifted)]
    for layer in plain.layers:
        one, other = (plan.layers[layer].gate_up for plan in plans)
        assert sorted(one) == sorted(other)
    assert plans[0].layers != plans[1].layers


def test_knobs_of_reordered_costs() -> None:
    """Zeta and the single sweep act on costs as they do on scores; both are checked and told."""
    table = CostTable("b", (1, 3), {"L": ((2.0, 0.0), (1.0, 0.0), (0.5, 0.0))})
    spread = Given("by", (1, 3, 1))

    def rows(**knobs: Any) -> tuple[tuple[float, ...], ...]:
        return ReorderCosts(GivenCosts(table), spread, **knobs)(EMPTY).layers["L"]

    assert rows() != table.layers["L"]
    assert rows(zeta=4.0) == rows(single_sweep=True) == table.layers["L"]
    with pytest.raises(ValueError, match="above 1, got"):
        ReorderCosts(GivenCosts(table), spread, zeta=1.0)
