"""What every allocator looks like from outside."""

from __future__ import annotations

from typing import Protocol

from moesaic.records import BitPlan, Budget, CostTable, LayerShape, Scores

Importance = Scores | CostTable | None


class Allocator(Protocol):
    """Turns importance and a budget into a plan that never exceeds the budget.

    An allocator that needs costs has the class attribute `needs_costs = True`; the others rank by scores. One that
    looks at neither has `needs_scores = False`, one that can meet a few budgets only names them in `only_budgets`, and
    one that may be given the entries of experts as if they were experts has `takes_entries = True`.
    """

    def __call__(self, shapes: list[LayerShape], budget: Budget, scores: Importance) -> BitPlan:
        """Allocate.

        Args:
            shapes: the model's MoE layers.
            budget: average code bits.
            scores: importance of every expert, or what every expert costs at every width, whichever of the two the
                allocator needs; None for allocators that treat all alike.

        Raises:
            BudgetInfeasible: with the reachable interval.
            UsageError: scores where costs are needed, or costs where scores are needed.
            InvalidPlan: scores or costs of another model.
        """
        ...


def needs_costs(allocator: Allocator) -> bool:
    """Whether the allocator weighs costs, and not scores."""
    return bool(getattr(allocator, "needs_costs", False))


def needs_scores(allocator: Allocator) -> bool:
    """Whether the allocator looks at scores or costs at all."""
    return bool(getattr(allocator, "needs_scores", True))


def only_budgets(allocator: Allocator) -> tuple[int, ...]:
    """The budgets that the allocator can meet, if they are few; else empty."""
    return tuple(getattr(allocator, "only_budgets", ()))
