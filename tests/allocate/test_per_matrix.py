"""Widths of their own for gate_up and down."""

from __future__ import annotations

from itertools import product

import pytest

from moesaic.allocate import GlobalMilp, PerMatrix, Pmq, TwoLevel, Uniform, needs_costs, needs_scores, only_budgets
from moesaic.allocate.choices import shapes_of
from moesaic.allocate.per_matrix import split_entries
from moesaic.errors import InvalidPlan, UsageError
from moesaic.records import WIDTHS, Budget, CostTable, LayerShape

SHAPES = [LayerShape("A", 2, 20, 10), LayerShape("B", 1, 20, 10)]
COSTS = CostTable(
    "r",
    (1, 2, 4),
    {
        "A/gate_up": ((9.0, 4.0, 0.5), (3.0, 1.0, 0.0)),
        "A/down": ((8.0, 2.0, 0.1), (1.0, 0.5, 0.2)),
        "B/gate_up": ((5.0, 3.0, 2.0),),
        "B/down": ((7.0, 6.0, 0.0),),
    },
    {"A/gate_up": 20, "A/down": 10, "B/gate_up": 20, "B/down": 10},
)


@pytest.mark.parametrize("bits", [1.0, 1.5, 2.1, 3.0, 4.0])
def test_best_of_all_plans_with_widths_of_their_own(bits: float) -> None:
    """The plan costs as little as the best of all 3^6, keeps the budget, and joins what belongs together."""
    plan = PerMatrix(GlobalMilp())(SHAPES, Budget(bits), COSTS)
    plan.check(SHAPES)
    sizes = [20, 20, 10, 10, 20, 10]
    rows = [row for layer in COSTS.layers.values() for row in layer]

    def cost(widths: tuple[int, ...]) -> float:
        return sum(row[(1, 2, 4).index(width)] for row, width in zip(rows, widths, strict=True))

    best = min(
        cost(widths)
        for widths in product((1, 2, 4), repeat=6)
        if sum(size * width for size, width in zip(sizes, widths, strict=True)) <= bits * 90 + 1e-9
    )
    a, b = plan.layers["A"], plan.layers["B"]
    assert cost((*a.gate_up, *a.down, *b.gate_up, *b.down)) == pytest.approx(best)


def test_uniform_stays_uniform() -> None:
    """A uniform plan is the same for the parts as for the whole, and needs neither scores nor costs."""
    made = PerMatrix(Uniform())
    assert made(SHAPES, Budget(3), None).layers == Uniform()(SHAPES, Budget(3)).layers
    assert not needs_scores(made)
    assert not needs_costs(made)
    assert only_budgets(made) == WIDTHS
    assert needs_costs(PerMatrix(GlobalMilp()))


@pytest.mark.parametrize("allocator", [TwoLevel(), Pmq()])
def test_allocators_of_whole_experts_are_refused(allocator: TwoLevel | Pmq) -> None:
    """An allocator that gives an expert one width says what to take in its place."""
    with pytest.raises(UsageError, match="--allocator global"):
        PerMatrix(allocator)


def test_costs_of_whole_experts_are_refused() -> None:
    """Costs that are not apart for the two entries cannot be used."""
    whole = CostTable("r", (1, 2), {"A": ((1.0, 0.0),) * 2, "B": ((1.0, 0.0),)})
    with pytest.raises(UsageError, match="of whole experts"):
        PerMatrix(GlobalMilp())(SHAPES, Budget(2), whole)


def test_shapes_from_a_table_of_entries() -> None:
    """A table of entries knows its layers, and one of which half is missing is refused."""
    assert shapes_of(COSTS) == SHAPES
    assert [shape.name for shape in split_entries(SHAPES)] == list(COSTS.layers)
    half = CostTable("r", (1, 2), {"A/gate_up": ((1.0, 0.0),)})
    with pytest.raises(InvalidPlan, match="1 experts for A/gate_up and 0 for A/down"):
        shapes_of(half)
