"""The plans of the ablations, all with the same number of code bits, and so with equal stored bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesaic.allocate import Allocator, ThreeLevel, TwoLevel, Uniform
from moesaic.records import BitPlan, Budget, LayerBits, LayerShape, Scores
from moesaic.scores import ModelWeights, Random
from moesaic.scores.reorder import ranking, reordered

from .values import CHANGE, FINAL, TRUTH, Values

ZETAS = (1.5, 2.0, 3.0, 5.0)
ALL = "all layers"


@dataclass(frozen=True)
class Budgeted:
    """Levels and a budget.

    Attributes:
        name: for people and records.
        allocator: gives widths by rank.
        bits: average code bits.
    """

    name: str
    allocator: Allocator
    bits: float


BUDGETS = (
    Budgeted("2/3 at 2.5", TwoLevel((2, 3)), 2.5),
    Budgeted("1/2/3 at 2.0", ThreeLevel((1, 2, 3)), 2.0),
    Budgeted("1/2/3 at 2.5", ThreeLevel((1, 2, 3)), 2.5),
)


@dataclass(frozen=True)
class Order:
    """Scores by layer under a name; larger = more bits.

    Attributes:
        name: for people and records.
        scores: layer -> one number an expert.
        shared: one budget over all layers, in place of the same counts in each.
    """

    name: str
    scores: Mapping[str, list[float]]
    shared: bool = False


def orders(values: Values) -> list[Order]:
    """All orders of the ablations that the values allow."""
    by = {name: {layer: list(row) for layer, row in found.items()} for name, found in values.items()}
    norm = CHANGE if CHANGE in by else FINAL
    found = [Order("MaxVar only", by["MaxVar"])]
    for name in dict.fromkeys((norm, FINAL)):
        found.append(Order(f"{name} only", _negative(by[name])))
        found += [Order(f"{name} + MaxVar, zeta {z:g}", _lifted(_negative(by[name]), by["MaxVar"], z)) for z in ZETAS]
    found += [
        Order(f"{norm}, reversed", by[norm]),
        Order(f"{norm}, reversed + MaxVar, zeta 3", _lifted(by[norm], by["MaxVar"], 3.0)),
        Order("MaxVar, reversed", _negative(by["MaxVar"])),
        Order("selection count", by["selection count"]),
        Order("selection count, reversed", _negative(by["selection count"])),
        Order("Fisher cost", by["Fisher cost"]),
        Order("truth (other held-out text)", by[TRUTH]),
    ]
    return [*found, *_shared(by, norm)]


def _shared(by: dict[str, dict[str, list[float]]], norm: str) -> Iterator[Order]:
    """One budget over all layers: raw values, and values standardised within each layer."""
    low, spread = _negative(by[norm]), by["MaxVar"]
    plain = {layer: list(np.asarray(row) / np.mean(row)) for layer, row in spread.items()}
    yield Order(f"{norm} only, one budget", low, shared=True)
    yield Order(f"{norm} only, one budget, standardised", _standardised(low), shared=True)
    yield Order(f"{norm} + MaxVar, zeta 3, one budget", _lifted_all(low, spread, 3.0), shared=True)
    both = _lifted_all(_standardised(low), plain, 3.0)
    yield Order(f"{norm} + MaxVar, zeta 3, one budget, standardised", both, shared=True)
    yield Order("MaxVar only, one budget", spread, shared=True)
    yield Order("MaxVar only, one budget, standardised", _standardised(spread), shared=True)
    yield Order("Fisher cost, one budget", by["Fisher cost"], shared=True)
    yield Order("truth (other held-out text), one budget", by[TRUTH], shared=True)


def plans(
    budget: Budgeted, values: Values, shapes: list[LayerShape], weights: ModelWeights, *, random: int
) -> Iterator[tuple[str, BitPlan]]:
    """Name and plan of every case of a budget; the random plans are called `random, seed N`."""
    if budget.bits == int(budget.bits):
        yield "uniform", Uniform()(shapes, Budget(budget.bits), None)
    for seed in range(random):
        yield f"random, seed {seed}", budget.allocator(shapes, Budget(budget.bits), Random(seed=seed)(weights))
    for order in orders(values):
        give = one_budget if order.shared else _by_layer
        yield order.name, give(budget, shapes, order)


def _by_layer(budget: Budgeted, shapes: list[LayerShape], order: Order) -> BitPlan:
    scores = Scores(order.name, {layer: tuple(row) for layer, row in order.scores.items()})
    return budget.allocator(shapes, Budget(budget.bits), scores)


def one_budget(budget: Budgeted, shapes: list[LayerShape], order: Order) -> BitPlan:
    """The allocator's counts over the experts of all layers together, as if they were one layer.

    Raises:
        ValueError: experts of different sizes; their bits would not add up to equal bytes.
    """
    if len({(shape.gate_up_weights, shape.down_weights) for shape in shapes}) != 1:
        raise ValueError("one budget by rank wants experts of one size in all layers")
    together = replace(shapes[0], name=ALL, experts=sum(shape.experts for shape in shapes))
    joined = Scores(order.name, {ALL: tuple(value for shape in shapes for value in order.scores[shape.name])})
    bits = list(budget.allocator([together], Budget(budget.bits), joined).layers[ALL].gate_up)
    layers, start = {}, 0
    for shape in shapes:
        own = tuple(bits[start : start + shape.experts])
        layers[shape.name] = LayerBits(own, own)
        start += shape.experts
    return BitPlan(f"{order.name}, {budget.name}", budget.bits, layers)


def plan_key(plan: BitPlan) -> str:
    """The same for plans that give every expert the same widths."""
    widths: Any = [[name, bits.gate_up, bits.down] for name, bits in plan.layers.items()]
    return hashlib.sha256(json.dumps(widths).encode()).hexdigest()[:16]


def _negative(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {layer: [-value for value in row] for layer, row in values.items()}


def _standardised(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {layer: list((np.asarray(row) - np.mean(row)) / np.std(row)) for layer, row in values.items()}


def _places(order: list[int]) -> list[float]:
    """A ranking as scores: the first gets the largest."""
    found = [0.0] * len(order)
    for place, expert in enumerate(order):
        found[expert] = float(len(order) - place)
    return found


def _lifted(scores: dict[str, list[float]], spread: dict[str, list[float]], zeta: float) -> dict[str, list[float]]:
    """The paper's reordering by MaxVar, layer by layer (`scores.Reorder`)."""
    return {
        layer: _places(reordered(ranking(tuple(row)), tuple(spread[layer]), zeta, single_sweep=False))
        for layer, row in scores.items()
    }


def _lifted_all(scores: dict[str, list[float]], spread: dict[str, list[float]], zeta: float) -> dict[str, list[float]]:
    """The same on the experts of all layers as one list."""
    joined = {ALL: [value for row in scores.values() for value in row]}
    lifted = _lifted(joined, {ALL: [value for row in spread.values() for value in row]}, zeta)[ALL]
    found, start = {}, 0
    for layer, row in scores.items():
        found[layer] = lifted[start : start + len(row)]
        start += len(row)
    return found
