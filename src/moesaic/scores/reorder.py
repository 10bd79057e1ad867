"""Reorder one rule's ranking by another (Chowdhury et al., ICLR 2026, arXiv 2604.06515: router norm by MaxVar).

An expert with much larger MaxVar than one ranked before it is lifted above it: `s` moves before `s'` when
`MaxVar_s >= zeta * MaxVar_s'`. The paper uses zeta = 3, the most by which the variance of a distribution on an interval
can exceed that of the uniform one. Few experts move (the paper: about 4 %).

`Reorder` does so with scores. `ReorderCosts` does the same with costs: the experts of a layer are ranked by what bits
save them, and the expert that comes to stand in a place takes over the costs of the one that stood there. Whatever the
allocator, it then gives each layer the widths that it would have given, in the new order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moesaic.records import CostTable, Scores, layer_of_entry
from moesaic.scores._protocol import CostRule, ModelWeights, Scorer, needs_errors, needs_stats

_RANKING_EXPONENTS = (1.0, 1.0, 2.0)  # of frequency, routing weight and error, in the ranking of raw costs


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
        _check_zeta(self.zeta)

    @property
    def needs_stats(self) -> bool:
        """Whether one of the two rules reads calibration statistics."""
        return needs_stats(self.base) or needs_stats(self.by)

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
        """The reordered ranking of one layer; see `reordered`."""
        return reordered(order, spread, self.zeta, single_sweep=self.single_sweep)


@dataclass(frozen=True)
class ReorderCosts:
    """Rank the experts of each layer by costs, lift them by `by`, and let costs go by place.

    Attributes:
        base: the rule whose costs these are. The more the largest width saves over the smallest, the further in front.
        by, zeta, single_sweep: see `Reorder`.
    """

    base: CostRule
    by: Scorer
    zeta: float = 3.0
    single_sweep: bool = False

    def __post_init__(self) -> None:
        _check_zeta(self.zeta)

    @property
    def needs_stats(self) -> bool:
        """Whether one of the two rules reads calibration statistics."""
        return needs_stats(self.base) or needs_stats(self.by)

    @property
    def needs_errors(self) -> tuple[str, ...]:
        """What calibration has to measure."""
        return needs_errors(self.base)

    def __call__(self, weights: ModelWeights) -> CostTable:
        """Every expert's costs after the reordering; smaller = better."""
        costs, by = self.base(weights), self.by(weights)
        finished = costs.weighted(*_RANKING_EXPONENTS)
        source: dict[str, list[int]] = {}
        moved: dict[str, int] = {}
        for layer, rows in finished.layers.items():
            before = ranking(tuple(row[0] - row[-1] for row in rows))
            after = reordered(before, by.layers[layer_of_entry(layer)], self.zeta, single_sweep=self.single_sweep)
            moved[layer] = _lifted(before, after)
            taken = dict(zip(after, before, strict=True))  # who stands in a place -> who stood there
            source[layer] = [taken[expert] for expert in range(len(after))]
        return replace(
            costs,
            rule=f"{costs.rule}+{by.rule}",
            layers={layer: _moved(rows, source[layer]) for layer, rows in costs.layers.items()},
            frequency={layer: _moved(values, source[layer]) for layer, values in costs.frequency.items()},
            routing_weight={layer: _moved(values, source[layer]) for layer, values in costs.routing_weight.items()},
            details={**costs.details, "zeta": self.zeta, "single_sweep": self.single_sweep, "lifted": moved},
        )


def reordered(order: list[int], spread: tuple[float, ...], zeta: float, *, single_sweep: bool) -> list[int]:
    """The reordered ranking of one layer.

    Args:
        order: experts, most bits first.
        spread: the `by` score of each expert, by expert index.
        zeta: above 1.
        single_sweep: one pass with a strict comparison.
    """
    current = _sweep(order, order, spread, zeta, strict=single_sweep)
    while not single_sweep:
        following = _sweep(current, current, spread, zeta, strict=False)
        if following == current:
            break
        current = following
    return current


def ranking(scores: tuple[float, ...]) -> list[int]:
    """Experts from the largest score to the smallest; ties go to the smaller index."""
    return sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))


def _sweep(order: list[int], current: list[int], spread: tuple[float, ...], zeta: float, *, strict: bool) -> list[int]:
    """From the last expert of `order` to the first: move it before the first one it exceeds."""
    result = list(current)
    for expert in reversed(order):
        position = result.index(expert)
        for ahead in range(position):
            if _exceeds(spread[expert], spread[result[ahead]], zeta, strict=strict):
                result.insert(ahead, result.pop(position))
                break
    return result


def _exceeds(mine: float, other: float, zeta: float, *, strict: bool) -> bool:
    if strict:
        return zeta * other < mine
    return mine > 0 and mine >= zeta * other


def _check_zeta(zeta: float) -> None:
    if not zeta > 1:
        raise ValueError(f"zeta must be above 1, got {zeta}")


def _moved(values: tuple[Any, ...], source: list[int]) -> tuple[Any, ...]:
    return tuple(values[expert] for expert in source)


def _lifted(before: list[int], after: list[int]) -> int:
    """How many experts stand nearer to the front than before."""
    place = {expert: position for position, expert in enumerate(before)}
    return sum(position < place[expert] for position, expert in enumerate(after))
