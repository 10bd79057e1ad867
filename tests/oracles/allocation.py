"""Naive allocation: look at every plan. Written from the papers' programs; for a handful of experts only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "published"


def published(name: str) -> dict[str, Any]:
    """Published measurements and allocations, which lie beside the project; the test is skipped without them."""
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"the published measurements {name} are no part of the project and are not beside it here")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def enough_of_each(bits: tuple[int, ...], at_least_one: tuple[int, ...]) -> bool:
    """Whether the widths hold those that are required."""
    return all(bits.count(width) >= at_least_one.count(width) for width in at_least_one)


def layer_plans(
    costs: list[list[float]], widths: tuple[int, ...], total: int, at_least_one: tuple[int, ...]
) -> list[tuple[float, int, tuple[int, ...]]]:
    """Every plan of one layer within the total: cost, bits in all, widths with the sign turned; best first."""
    found = []
    for bits in product(widths, repeat=len(costs)):
        if sum(bits) <= total and enough_of_each(bits, at_least_one):
            cost = 0.0
            for row, width in zip(costs[::-1], bits[::-1], strict=True):
                cost = cost + row[widths.index(width)]
            found.append((cost, sum(bits), tuple(-width for width in bits)))
    return sorted(found)


def pmq_objective(
    eps: list[list[float]], phi: list[float], w: list[float], exponents: tuple[float, float, float]
) -> list[list[float]]:
    """`phi^alpha * w^beta * eps^gamma`, phi and w over their sums."""
    alpha, beta, gamma = exponents
    return [
        [(phi[i] / sum(phi)) ** alpha * (w[i] / sum(w)) ** beta * error**gamma for error in row]
        for i, row in enumerate(eps)
    ]


def global_plans(
    layers: list[list[list[float]]],
    sizes: list[int],
    widths: tuple[int, ...],
    budget: float,
    at_least_one: tuple[int, ...],
) -> Iterator[tuple[float, float]]:
    """Every plan of a model within the average: cost, bits in all."""
    weights = sum(size * len(layer) for size, layer in zip(sizes, layers, strict=True))
    every_layer = [
        [bits for bits in product(widths, repeat=len(layer)) if enough_of_each(bits, at_least_one)] for layer in layers
    ]
    for plan in product(*every_layer):
        used = sum(size * sum(bits) for size, bits in zip(sizes, plan, strict=True))
        if used <= budget * weights + 1e-9:
            cost = sum(
                row[widths.index(width)]
                for layer, bits in zip(layers, plan, strict=True)
                for row, width in zip(layer, bits, strict=True)
            )
            yield cost, used
