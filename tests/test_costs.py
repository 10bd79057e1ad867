"""The noun of the allocators that weigh errors: its checks, its weighting, its file form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic import records
from moesaic.costs import CostTable
from moesaic.errors import CorruptFile

numbers = st.floats(allow_nan=False, allow_infinity=False)


def table(**changes: Any) -> CostTable:
    """Two layers of two and one experts at 1 and 3 bits."""
    return CostTable(
        **{"rule": "r", "bits": (1, 3), "layers": {"a": ((4.0, 1.0), (2.0, 0.0)), "b": ((-1, 5),)}, **changes}
    )


def test_it_is_a_noun_like_the_others() -> None:
    """Costs are imported from where the other nouns are."""
    assert records.CostTable is CostTable


@settings(max_examples=50)
@given(data=st.data(), sized=st.booleans(), raw=st.booleans())
def test_costs_survive_their_file_form(data: st.DataObject, sized: bool, raw: bool) -> None:
    """Costs are the same after JSON, to the last bit, with and without sizes and factors."""
    positive = st.floats(0, 1e300)
    counts = data.draw(st.dictionaries(st.sampled_from(["a", "b.0", "ü"]), st.integers(1, 4), min_size=1))
    cell = positive if raw else numbers
    factors = (
        {layer: tuple(data.draw(positive) for _ in range(count)) for layer, count in counts.items()} if raw else {}
    )
    costs = CostTable(
        rule="r",
        bits=(1, 2, 8),
        layers={
            layer: tuple(tuple(data.draw(cell) for _ in range(3)) for _ in range(count))
            for layer, count in counts.items()
        },
        weights=dict.fromkeys(counts, 7) if sized else {},
        frequency=factors,
        routing_weight=factors,
        details={"seed": 1},
    )
    assert CostTable.from_json(json.loads(json.dumps(costs.to_json()))) == costs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": ()}, r"widths are \[\]"),
        ({"bits": (0, 1)}, r"\[0, 1\].*from 1 to 16"),
        ({"bits": (1, True)}, "from 1 to 16"),
        ({"bits": (3, 1)}, "not ascending"),
        ({"bits": (1, 1)}, "not ascending"),
        ({"layers": {}}, "no layer"),
        ({"layers": {"a": ()}}, "a: there is no expert"),
        ({"layers": {"a": ((1.0, 2.0), (1.0,))}}, "a, expert 1: 1 costs for 2 widths, 1, 3"),
        ({"layers": {"a": ((1.0, float("nan")),)}}, "a, expert 0, 3 bits: nan is not a finite number"),
        ({"layers": {"a": ((float("-inf"), 1.0),)}}, "a, expert 0, 1 bits: -inf"),
        ({"layers": {"a": ((10**400, 1.0),)}}, "a, expert 0, 1 bits: 1000"),
        ({"layers": {"a": (("1", 1.0),)}}, "a, expert 0, 1 bits: '1'"),
        ({"layers": {"a": ((True, 1.0),)}}, "a, expert 0, 1 bits: True"),
        ({"weights": {"a": 3}}, 'b: no "weights"'),
        ({"weights": {"a": 3, "b": 0}}, 'b: "weights" is 0'),
        ({"weights": {"a": 3, "b": 1.5}}, 'b: "weights" is 1.5'),
        ({"frequency": {"a": (1, 1), "b": (1,)}}, "both of"),
        ({"frequency": {"a": (1, 1), "b": (1,)}, "routing_weight": {"a": (1, 1)}}, 'b: 0 values of "routing_weight"'),
        (
            {"frequency": {"a": (1, -1), "b": (1,)}, "routing_weight": {"a": (1, 1), "b": (1,)}},
            'a, expert 1: "frequency" is -1',
        ),
        (
            {"frequency": {"a": (1, 1), "b": (1,)}, "routing_weight": {"a": (1, 1), "b": (1,)}},
            "b, expert 0, 1 bits: -1 is negative",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    """A wrong value is answered with layer, expert and width."""
    with pytest.raises(CorruptFile, match=message):
        table(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "moesaic-scores/1"}, "not a costs file"),
        ({"layers": []}, "not a costs file"),
        ({"bits": "1 2"}, "list of widths"),
        ({"details": []}, "details"),
        ({"layers": {"a": [[1, 2]]}}, "a: .* is not an object"),
        ({"layers": {"a": {}}}, 'a: no "costs"'),
        ({"layers": {"a": {"costs": [[1, 2]], "weight": 3}}}, 'a: unknown key "weight"; a layer has costs, weights'),
        ({"layers": {"a": {"costs": 3}}}, 'a: "costs" is 3, not a list'),
        ({"layers": {"a": {"costs": [3]}}}, "a, expert 0: 3 is not a list"),
        ({"layers": {"a": {"costs": [[None, 1]]}}}, "a, expert 0, 1 bits: None"),
        ({"layers": {"a": {"costs": [[1, 1]], "frequency": 1}}}, 'a: "frequency" is 1, not a list'),
    ],
)
def test_what_is_no_costs_file_is_refused(changes: dict[str, Any], message: str) -> None:
    """Another file, or a broken one, is a CorruptFile and not a stack trace."""
    good = {"format": "moesaic-costs/1", "rule": "r", "bits": [1, 2], "layers": {"a": {"costs": [[2, 1]]}}}
    assert CostTable.from_json(good).layers == {"a": ((2, 1),)}
    with pytest.raises(CorruptFile, match=message):
        CostTable.from_json({**good, **changes})


def test_weighting_by_hand() -> None:
    """phi^alpha w^beta eps^gamma with phi = 1/4, 3/4 and w = 1/2, 1/2."""
    raw = CostTable("r", (1, 2), {"L": ((8.0, 4.0), (2.0, 0.0))}, {}, {"L": (1, 3)}, {"L": (5, 5)})
    assert raw.raw
    assert raw.weighted(1, 2, 1).layers["L"] == ((0.5, 0.25), (0.375, 0.0))
    assert raw.weighted(1, 1, 2).layers["L"] == ((8.0, 2.0), (1.5, 0.0))
    assert not raw.weighted(1, 1, 2).raw


def test_finished_costs_are_not_weighted() -> None:
    """Exponents are for raw errors; costs without factors stay as they are."""
    assert table().weighted(1, 1, 2) is not None
    assert table().weighted(1, 1, 2) == table()


@pytest.mark.parametrize("factor", [0.0, 5e-324, 1e308])
def test_factors_of_any_size_are_made_to_sum_to_one(factor: float) -> None:
    """Only their proportions count: tiny and huge factors neither vanish nor overflow, zeros stay zeros."""
    factors = {"L": (factor, factor)}
    costs = CostTable("r", (1,), {"L": ((4.0,), (4.0,))}, {}, factors, factors).weighted(1, 1, 1).layers["L"]
    assert costs == (((1.0,), (1.0,)) if factor else ((0.0,), (0.0,)))


def test_a_power_that_overflows_is_refused_with_its_place() -> None:
    """A square beyond the largest double is an error that names the expert."""
    raw = CostTable("r", (1,), {"L": ((1e200,),)}, {}, {"L": (1,)}, {"L": (1,)})
    with pytest.raises(CorruptFile, match="L, expert 0, 1 bits: inf"):
        raw.weighted(1, 1, 2)
