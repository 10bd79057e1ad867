"""What every allocator looks like from outside."""

from __future__ import annotations

from typing import Protocol

from moesaic.records import BitPlan, Budget, LayerShape, Scores


class Allocator(Protocol):
    """Turns importance and a budget into a plan that never exceeds the budget."""

    def __call__(self, shapes: list[LayerShape], budget: Budget, scores: Scores | None) -> BitPlan:
        """Allocate.

        Args:
            shapes: the model's MoE layers.
            budget: average code bits.
            scores: importance of every expert; None for allocators that treat all alike.

        Raises:
            BudgetInfeasible: with the reachable interval.
        """
        ...
