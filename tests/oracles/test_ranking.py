"""The naive counts and reordering against published tables, and the package against both."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.allocate.three_level import three_level_counts
from moesaic.records import Budget
from moesaic.scores.reorder import Reorder
from tests.oracles import ranking

TABLE = [(experts, bits, counts) for experts, row in ranking.PUBLISHED_COUNTS.items() for bits, counts in row.items()]
RULE = Reorder(base=None, by=None)  # type: ignore[arg-type]  # only its sweeps are used
SPREADS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 9.0, 13.5, 27.0, 81.0]), max_size=9)


@pytest.mark.parametrize(("experts", "bits", "counts"), TABLE)
def test_published_counts(experts: int, bits: float, counts: tuple[int, int, int]) -> None:
    """The released code's counts for 8 and 64 experts come out exactly, from the oracle and from the package."""
    assert ranking.three_level_counts(experts, Fraction(bits), (1, 2, 3)) == counts
    found = three_level_counts(experts, Budget(bits), (1, 2, 3))
    assert (found[1], found[2], found[3]) == counts


@settings(max_examples=300, deadline=None)
@given(experts=st.integers(1, 130), eighths=st.integers(0, 64), levels=st.sampled_from([(1, 2, 3), (2, 3, 4)]))
def test_counts_agree_for_any_number_of_experts(experts: int, eighths: int, levels: tuple[int, int, int]) -> None:
    """Naive and real counts agree on budgets in 32nds of a bit, for any number of experts."""
    bits = levels[0] + Fraction(eighths, 32)
    wanted = ranking.three_level_counts(experts, bits, levels)
    found = three_level_counts(experts, Budget(float(bits)), levels)
    assert tuple(found[level] for level in levels) == wanted


@settings(max_examples=300, deadline=None)
@given(spread=SPREADS, data=st.data(), zeta=st.sampled_from([1.5, 2.0, 3.0, 5.0]))
def test_single_sweep_is_the_released_code(spread: list[float], data: st.DataObject, zeta: float) -> None:
    """One sweep in the package moves exactly what the released code moves."""
    order = data.draw(st.permutations(range(len(spread))))
    rule = Reorder(base=None, by=None, zeta=zeta, single_sweep=True)  # type: ignore[arg-type]
    assert rule.reordered(order, tuple(spread)) == ranking.reorder_once(order, spread, zeta)


@settings(max_examples=300, deadline=None)
@given(spread=SPREADS, data=st.data(), zeta=st.sampled_from([1.5, 2.0, 3.0, 5.0]))
def test_stable_form_leaves_nothing_to_lift(spread: list[float], data: st.DataObject, zeta: float) -> None:
    """Repeated sweeps end, with every expert there once and no pair left that the paper's rule would swap."""
    order = data.draw(st.permutations(range(len(spread))))
    rule = Reorder(base=None, by=None, zeta=zeta)  # type: ignore[arg-type]
    after = rule.reordered(order, tuple(spread))
    assert sorted(after) == sorted(order)
    assert ranking.violations(after, spread, zeta) == []
    if not ranking.violations(order, spread, zeta):
        assert after == order


@settings(max_examples=200, deadline=None)
@given(spread=SPREADS.filter(lambda values: len(set(values)) == len(values)), data=st.data())
def test_stable_form_agrees_with_single_lifts(spread: list[float], data: st.DataObject) -> None:
    """Where at most one expert has to move, sweeps and one-at-a-time lifting give the same order."""
    order = data.draw(st.permutations(range(len(spread))))
    movers = {expert for expert, _ in ranking.violations(order, spread, 3.0)}
    after = RULE.reordered(order, tuple(spread))
    if len(movers) <= 1:
        assert after == ranking.reorder_until_stable(order, spread, 3.0)
    stay = [expert for expert in order if expert not in movers]
    assert [expert for expert in after if expert not in movers] == stay
