"""Reorder one rule's ranking by another (Chowdhury et al., ICLR 2026, arXiv 2604.06515: router norm by MaxVar).

An expert with much larger MaxVar than one ranked before it is lifted above it: `s` moves before `s'` when
`MaxVar_s >= zeta * MaxVar_s'`. The paper uses zeta = 3, the most by which the variance of a distribution on an interval
can exceed that of the uniform one. Few experts move (the paper: about 4 %).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights, Scorer


@dataclass(frozen=True)
class Reorder:
    """Rank by `base`, then lift experts by `by`. The score is the place in the new ranking (first = largest).

    Attributes:
        base: the rule that ranks.
        by: the rule that lifts; its scores are compared as ratios and must not be negative.
        zeta: how many times larger the lifted expert's `by` must be; above 1.
        single_sweep: one pass with a strict comparison, as in the paper's released code, instead of repeating
            until nothing moves.
    """

    base: Scorer
    by: Scorer
    zeta: float = 3.0
    single_sweep: bool = False

    def __post_init__(self) -> None:
        if not self.zeta > 1:
            raise ValueError(f"zeta must be above 1, got {self.zeta}")

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; larger = earlier in the reordered ranking = more bits."""
        base, by = self.base(weights), self.by(weights)
        layers: dict[str, tuple[float, ...]] = {}
        moved: dict[str, int] = {}
        for layer, scores in base.layers.items():
            before = ranking(scores)
            after = self.reordered(before, by.layers[layer])
            moved[layer] = _lifted(before, after)
            place = {expert: position for position, expert in enumerate(after)}
            layers[layer] = tuple(float(len(after) - place[expert]) for expert in range(len(after)))
        details: dict[str, Any] = {
            **base.details,
            "zeta": self.zeta,
            "single_sweep": self.single_sweep,
            "lifted": moved,
            "parts": {part.rule: {layer: list(scores) for layer, scores in part.layers.items()} for part in (base, by)},
        }
        return Scores(rule=f"{base.rule}+{by.rule}", layers=layers, details=details)

    def reordered(self, order: list[int], spread: tuple[float, ...]) -> list[int]:
        """The reordered ranking of one layer.

        Args:
            order: experts, most bits first.
            spread: the `by` score of each expert, by expert index.
        """
        current = self._sweep(order, order, spread)
        while not self.single_sweep:
            following = self._sweep(current, current, spread)
            if following == current:
                break
            current = following
        return current

    def _sweep(self, order: list[int], current: list[int], spread: tuple[float, ...]) -> list[int]:
        """From the last expert of `order` to the first: move it before the first one it exceeds."""
        result = list(current)
        for expert in reversed(order):
            position = result.index(expert)
            for ahead in range(position):
                if self._exceeds(spread[expert], spread[result[ahead]]):
                    result.insert(ahead, result.pop(position))
                    break
        return result

    def _exceeds(self, mine: float, other: float) -> bool:
        if self.single_sweep:
            return self.zeta * other < mine
        return mine > 0 and mine >= self.zeta * other


def ranking(scores: tuple[float, ...]) -> list[int]:
    """Experts from the largest score to the smallest; ties go to the smaller index."""
    return sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))


def _lifted(before: list[int], after: list[int]) -> int:
    """How many experts stand nearer to the front than before."""
    place = {expert: position for position, expert in enumerate(before)}
    return sum(position < place[expert] for position, expert in enumerate(after))
