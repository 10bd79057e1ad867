"""Three equally spaced widths (Chowdhury et al., ICLR 2026, arXiv 2604.06515; counts as in its released code).

Start from two neighbouring widths that meet the budget, then trade two experts of the middle width for one of the high
and one of the low, which keeps the average. How far to trade depends on where the budget `b` lies in the span
`D = high - low`:

- `b > high - D/3`: as far as possible;
- `high - 2D/3 <= b <= high - D/3`: while, after the trade, the middle width still has at least as many experts as were
  promoted;
- below: not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.allocate._protocol import Importance
from moesaic.allocate.ranks import Counts, affordable_bits, check_reachable, plan_by_rank, two_level_counts
from moesaic.records import WIDTHS, BitPlan, Budget, LayerShape


@dataclass(frozen=True)
class ThreeLevel:
    """Three widths with the paper's counts.

    Attributes:
        levels: low, middle and high width, equally spaced.
    """

    levels: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        low, middle, high = self.levels if len(self.levels) == 3 else (0, 0, 0)
        if not (low < middle < high and high - middle == middle - low and set(self.levels) <= set(WIDTHS)):
            raise ValueError(
                f"three_level needs three ascending, equally spaced widths out of {WIDTHS}, got {self.levels}"
            )

    def __call__(self, shapes: list[LayerShape], budget: Budget, scores: Importance) -> BitPlan:
        """Allocate; see `Allocator`."""
        low, middle, high = self.levels
        check_reachable(budget, low, high, levels=self.levels)
        return plan_by_rank(
            shapes,
            budget,
            scores,
            method=f"three_level {low}/{middle}/{high}",
            counts=lambda experts: three_level_counts(experts, budget, self.levels),
        )


def three_level_counts(experts: int, budget: Budget, levels: tuple[int, ...]) -> Counts:
    """How many of a layer's experts get each of three widths."""
    low, middle, high = levels
    pair = (middle, high) if affordable_bits(budget, experts) >= middle * experts else (low, middle)
    base = {low: 0, middle: 0, high: 0, **two_level_counts(experts, budget, *pair)}
    third = (high - low) / 3
    traded = 0
    while base[middle] - 2 * traded >= 2:
        left = base[middle] - 2 * (traded + 1)
        if budget.bits > high - third + 1e-9:
            allowed = True
        elif budget.bits >= high - 2 * third - 1e-9:
            allowed = left >= traded + 1
        else:
            allowed = False
        if not allowed:
            break
        traded += 1
    return {low: base[low] + traded, middle: base[middle] - 2 * traded, high: base[high] + traded}
