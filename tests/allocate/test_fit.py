"""The search for the largest plan that fits, against trying budgets one after the other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.allocate import ALLOCATORS, GlobalMilp, ThreeLevel, Uniform, default_allocator, needs_costs, only_budgets
from moesaic.allocate.fit import largest_fit
from moesaic.errors import BudgetInfeasible
from moesaic.records import BitPlan, Budget, CostTable, LayerShape, Scores

STORED = {1: 1.2, 2: 2.3, 3: 3.3, 4: 4.3, 8: 8.3, 16: 16.0}  # bits a weight with scales: not proportional to the width


def measure(plan: BitPlan, shapes: list[LayerShape]) -> float:
    """A made-up size: 100 for the rest, and the stored bits of every expert."""
    return 100 + sum(
        STORED[width] * shape.expert_weights for shape in shapes for width in plan.layers[shape.name].gate_up
    )


@st.composite
def models(draw: st.DrawFn) -> tuple[list[LayerShape], Scores, CostTable]:
    """Layers of random number and size of experts, with scores and costs."""
    shapes = [
        LayerShape(str(i), draw(st.integers(2, 12)), draw(st.integers(8, 99)), draw(st.integers(8, 99)))
        for i in range(draw(st.integers(1, 5)))
    ]
    values = {shape.name: tuple(draw(st.floats(0, 10)) for _ in range(shape.experts)) for shape in shapes}
    rows = {name: tuple(tuple(v * 4.0**-b for b in (1, 2, 3, 4)) for v in each) for name, each in values.items()}
    sizes = {shape.name: shape.expert_weights for shape in shapes}
    return shapes, Scores("r", values), CostTable("r", (1, 2, 3, 4), rows, sizes)


@settings(max_examples=60, deadline=None)
@given(model=models(), share=st.floats(0.01, 1.3), name=st.sampled_from(["default", "three_level", "global"]))
def test_nothing_larger_that_was_tried_fits(
    model: tuple[list[LayerShape], Scores, CostTable], share: float, name: str
) -> None:
    """The limit holds, and no budget of a fine scan gives a plan that fits and is larger by more than an expert."""
    shapes, scores, costs = model

    def allocate(bits: float) -> BitPlan:
        budget = Budget(bits)
        allocator = {"three_level": ThreeLevel(), "global": GlobalMilp()}.get(name) or default_allocator(budget)
        return allocator(shapes, budget, costs if needs_costs(allocator) else scores)

    weights = sum(shape.experts * shape.expert_weights for shape in shapes)
    top = {"three_level": 3, "global": 4}.get(name, 16)
    limit = 100 + weights * (1.2 + share * (top - 1.2))
    step = 0.25 / max(shape.experts for shape in shapes)
    found = largest_fit(allocate, lambda plan: measure(plan, shapes), limit, step=step)
    assert found.value == measure(found.plan, shapes) <= limit
    scanned = [measure(allocate(1 + (top - 1) * i / 150), shapes) for i in range(151)]
    best = max(value for value in scanned if value <= limit)
    largest_step = max(shape.expert_weights for shape in shapes) * (1.1 if top < 16 else 8.0)
    assert found.value >= best * 0.999 - largest_step


def test_a_limit_below_the_smallest_plan() -> None:
    """Where nothing fits the smallest plan comes back, with what it takes."""
    shapes = [LayerShape("L", 4, 10, 0)]
    found = largest_fit(
        lambda bits: ThreeLevel()(shapes, Budget(bits), None), lambda p: measure(p, shapes), 50, step=0.1
    )
    assert found.value > 50
    assert set(found.plan.layers["L"].gate_up) == {1}


def test_the_ends_of_an_allocator_that_cannot_meet_all_budgets() -> None:
    """Levels 2 and 4 begin at 2 bits and end at 4; a limit above all of them gives 4."""
    shapes = [LayerShape("L", 4, 10, 0)]
    made = ALLOCATORS["two_level"](levels=(2, 4))
    at = [
        largest_fit(lambda b: made(shapes, Budget(b), None), lambda p: measure(p, shapes), limit, step=0.1).plan
        for limit in (100 + 4 * 23, 1e9)
    ]
    assert [plan.layers["L"].gate_up for plan in at] == [(2,) * 4, (4,) * 4]


@pytest.mark.parametrize(("limit", "width"), [(100 + 40 * 2.3, 2), (100 + 40 * 8.2, 4), (1e9, 16)])
def test_few_budgets_are_all_tried(limit: float, width: int) -> None:
    """A uniform plan gets the largest width that fits, and stays uniform."""
    shapes = [LayerShape("L", 4, 10, 0)]
    found = largest_fit(
        lambda bits: Uniform()(shapes, Budget(bits)),
        lambda plan: measure(plan, shapes),
        limit,
        step=0.1,
        only=only_budgets(Uniform()),
    )
    assert found.plan.layers["L"].gate_up == (width,) * 4


def test_an_allocator_that_meets_nothing() -> None:
    """A refusal without an interval is passed on."""

    def refuse(bits: float) -> BitPlan:
        raise BudgetInfeasible(f"not {bits}")

    with pytest.raises(BudgetInfeasible, match="not 1"):
        largest_fit(refuse, lambda plan: 0.0, 1.0, step=0.1)
