"""One width for every expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesaic.allocate._protocol import Importance
from moesaic.allocate.ranks import plan_by_rank
from moesaic.errors import BudgetInfeasible
from moesaic.records import WIDTHS, BitPlan, Budget, LayerShape


@dataclass(frozen=True)
class Uniform:
    """Every expert gets the budget's width, which must be one of 1, 2, 3, 4, 8, 16."""

    needs_scores: ClassVar[bool] = False
    only_budgets: ClassVar[tuple[int, ...]] = WIDTHS
    takes_entries: ClassVar[bool] = True

    def __call__(self, shapes: list[LayerShape], budget: Budget, scores: Importance = None) -> BitPlan:
        """Allocate; see `Allocator`. Scores and costs are not used."""
        if budget.bits not in WIDTHS:
            raise BudgetInfeasible(
                f"--bits {budget.bits:g} is out of reach for a uniform plan: give one of "
                f"{', '.join(map(str, WIDTHS))}, or an allocator that mixes widths"
            )
        width = int(budget.bits)
        return plan_by_rank(shapes, budget, None, method="uniform", counts=lambda experts: {width: experts})
