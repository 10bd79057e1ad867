"""What every allocator looks like from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from moesaic.records import BitPlan, Budget, CostTable, LayerShape, Scores

Importance = Scores | CostTable | None
Stored = Callable[[str, int], int]  # layer (or entry of one) and width -> bytes that one of its experts takes


class Allocator(Protocol):
    """Turns importance and a budget into a plan that never exceeds the budget.

    An allocator that needs costs has the class attribute `needs_costs = True`; the others rank by scores. One that
    looks at neither has `needs_scores = False`, one that can meet a few budgets only names them in `only_budgets`, one
    that may be given the entries of experts as if they were experts has `takes_entries = True`, and one that is an
    `InBytes` has `counts_bytes = True`.
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


class InBytes(Allocator, Protocol):
    """An allocator that can keep a budget in bytes by itself; for the others budgets in code bits are tried."""

    def within_bytes(self, shapes: list[LayerShape], limit: int, stored: Stored, scores: Importance) -> BitPlan:
        """The best plan whose experts take at most `limit` bytes together; otherwise as a call.

        Raises:
            BudgetInfeasible: no plan is that small.
        """
        ...


def in_bytes(allocator: Allocator) -> InBytes | None:
    """The allocator, if it can keep a budget in bytes by itself."""
    return cast(InBytes, allocator) if getattr(allocator, "counts_bytes", False) else None
