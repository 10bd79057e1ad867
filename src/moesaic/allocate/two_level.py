"""Two widths: the best experts get the high one (Chowdhury et al., ICLR 2026, arXiv 2604.06515)."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.allocate._protocol import Importance
from moesaic.allocate.ranks import check_reachable, plan_by_rank, two_level_counts
from moesaic.records import WIDTHS, BitPlan, Budget, LayerShape


@dataclass(frozen=True)
class TwoLevel:
    """`floor(kappa * experts)` experts get the high width, `kappa = (b - low) / (high - low)`.

    The paper rounds; rounding up would exceed the budget, so this rounds down.

    Attributes:
        levels: low and high width.
    """

    levels: tuple[int, ...] = (2, 3)

    def __post_init__(self) -> None:
        if len(self.levels) != 2 or self.levels[0] >= self.levels[1] or not set(self.levels) <= set(WIDTHS):
            raise ValueError(f"two_level needs two ascending widths out of {WIDTHS}, got {self.levels}")

    def __call__(self, shapes: list[LayerShape], budget: Budget, scores: Importance) -> BitPlan:
        """Allocate; see `Allocator`."""
        low, high = self.levels
        check_reachable(budget, low, high, levels=self.levels)
        method = f"two_level {low}/{high}"
        return plan_by_rank(
            shapes, budget, scores, method=method, counts=lambda n: two_level_counts(n, budget, low, high)
        )
