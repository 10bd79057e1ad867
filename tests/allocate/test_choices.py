"""From a cost table to what an allocator chooses from, and back."""

from __future__ import annotations

import numpy as np
import pytest

from moesaic.allocate import choices
from moesaic.errors import BudgetInfeasible, InvalidPlan, UsageError
from moesaic.records import Budget, CostTable, LayerShape, Scores

COSTS = CostTable("r", (1, 2, 5), {"a": ((3.0, 2.0, 1.0),) * 2, "b": ((3.0, 2.0, 1.0),)}, {"a": 10, "b": 30})
SHAPES = [LayerShape("a", 2, 6, 4), LayerShape("b", 1, 20, 10)]


def test_shapes_come_from_the_costs() -> None:
    """Layers, experts and sizes are those of the table; without sizes all experts weigh the same."""
    assert [(s.name, s.experts, s.expert_weights) for s in choices.shapes_of(COSTS)] == [("a", 2, 10), ("b", 1, 30)]
    unsized = CostTable("r", (1,), {"a": ((1.0,),)})
    assert choices.shapes_of(unsized)[0].expert_weights == 1


@pytest.mark.parametrize("given", [None, Scores("by hand", {"a": (1.0, 2.0), "b": (1.0,)})])
def test_another_noun_is_refused(given: Scores | None) -> None:
    """The message says what is needed and what was given."""
    with pytest.raises(UsageError, match=r"pmq .* needs costs .* given (nothing|scores \(by hand\))"):
        choices.demand_costs(given, SHAPES, "pmq")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([LayerShape("a", 3, 1, 1), SHAPES[1]], "2 experts for a, the model has 3"),
        ([*SHAPES, LayerShape("c", 1, 1, 1)], "0 experts for c, the model has 1"),
        (SHAPES[:1], "name b, which the model does not have"),
    ],
)
def test_costs_of_another_model_are_refused(shapes: list[LayerShape], message: str) -> None:
    """Layers and numbers of experts must be the model's."""
    with pytest.raises(InvalidPlan, match=message):
        choices.demand_costs(COSTS, shapes, "pmq")


def test_widths_to_choose_from() -> None:
    """Levels have to have costs; a width of the table that cannot be packed has to be left out by levels."""
    assert choices.choose_widths(COSTS, (1, 2)) == (1, 2)
    with pytest.raises(UsageError, match="no costs for 4 bits: they are for 1, 2, 5"):
        choices.choose_widths(COSTS, (1, 4))
    with pytest.raises(UsageError, match="width 5, which cannot be packed"):
        choices.choose_widths(COSTS, None)


@pytest.mark.parametrize("levels", [(), (2, 1), (1, 1), (1, 5)])
def test_levels_that_no_table_could_serve(levels: tuple[int, ...]) -> None:
    """Levels are ascending widths of the format."""
    with pytest.raises(ValueError, match="ascending widths"):
        choices.check_levels(levels, "pmq")


def test_required_counts() -> None:
    """A width named twice is wanted twice; one that cannot be chosen is refused; a layer must have room."""
    assert choices.required_counts((3, 2, 3), (1, 2, 3)) == (0, 1, 2)
    assert choices.smallest_total(5, (1, 2, 3), (0, 1, 2)) == 10
    with pytest.raises(UsageError, match="--at-least 3,4: 4 is not one of"):
        choices.required_counts((3, 4), (1, 2, 3))
    with pytest.raises(UsageError, match=r"b has 1 experts, fewer than the 2 .* none"):
        choices.check_room(SHAPES, (1, 1))


def test_the_interval_that_is_shown_can_be_used() -> None:
    """The lower end is rounded up, so that a budget copied from the message works."""
    with pytest.raises(BudgetInfeasible, match=r"--bits 1 is out of reach .* \[1.0834, 3\]"):
        choices.check_interval(Budget(1), 13 / 12, (1, 2, 3))
    choices.check_interval(Budget(1.0834), 13 / 12, (1, 2, 3))


def test_equal_experts_are_served_in_order() -> None:
    """Of experts with the same costs the first gets the largest width; others keep theirs."""
    rows = np.array([[2.0, 1.0], [9.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    assert choices.serve_equals_in_order(rows, np.array([0, 0, 1, 0])).tolist() == [1, 0, 0, 0]


def test_rows_and_plans_speak_of_the_same_widths() -> None:
    """Columns are picked by width, places are turned back into it."""
    assert choices.cost_rows(COSTS, "b", (1, 5)).tolist() == [[3.0, 1.0]]
    plan = choices.plan_of_places({"b": [1]}, (1, 4), Budget(4), "m")
    assert plan.layers["b"].gate_up == plan.layers["b"].down == (4,)
