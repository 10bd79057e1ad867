"""Spearman's rank correlation of measures: in each layer, and overall as the mean of the layers, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..intervals import Interval
from .values import Values

Array = NDArray[np.float64]


class Correlations:
    """All pairs of some measures.

    The intervals are percentiles of bootstrap draws: within a layer, experts are drawn with replacement; overall,
    layers are drawn and then experts in each. Experts for which a measure has no value (those that served no token) are
    left out of all pairs. With 8 experts a layer's own interval is wide and rough; the overall one is what to read.

    Attributes:
        names: of the measures.
        layers: of the model.
        left_out: how many experts were left out.
    """

    def __init__(self, values: Values, *, draws: int, seed: int = 0) -> None:
        """Correlate.

        Args:
            values: measure -> layer -> one number an expert.
            draws: bootstrap resamples.
            seed: of the draws.
        """
        self.names = list(values)
        self.layers = list(next(iter(values.values())))
        self.left_out = 0
        rng = np.random.default_rng(seed)
        exact, drawn = [], []
        for layer in self.layers:
            table = np.asarray([values[name][layer] for name in self.names], dtype=np.float64)  # (M, E)
            whole = np.isfinite(table).all(axis=0)
            self.left_out += int((~whole).sum())
            table = table[:, whole]
            exact.append(spearman(table[:, None])[:, :, 0])
            chosen = rng.integers(table.shape[1], size=(draws, table.shape[1]))
            drawn.append(spearman(table[:, chosen]))
        self._exact = np.stack(exact)  # (L, M, M)
        self._drawn = np.stack(drawn)  # (L, M, M, D)
        layers = rng.integers(len(self.layers), size=(draws, len(self.layers)))
        picks = rng.integers(draws, size=layers.shape)
        self._overall = _mean(self._drawn.transpose(0, 3, 1, 2)[layers, picks], axis=1)  # (D, M, M)

    def overall(self, one: str, other: str) -> Interval:
        """Mean over the layers of the correlation within each."""
        a, b = self.names.index(one), self.names.index(other)
        return _interval(float(_mean(self._exact[:, a, b], axis=0)), self._overall[:, a, b], len(self.layers))

    def within(self, layer: str, one: str, other: str) -> Interval:
        """Correlation within one layer."""
        a, b, at = self.names.index(one), self.names.index(other), self.layers.index(layer)
        return _interval(float(self._exact[at, a, b]), self._drawn[at, a, b], 1)

    def matrix(self) -> list[list[Interval]]:
        """The overall correlations of all pairs."""
        return [[self.overall(one, other) for other in self.names] for one in self.names]


def spearman(table: Array) -> Array:
    """Rank correlations between measures. `[measures, draws, experts]` -> `[measures, measures, draws]`

    NaN where a measure is the same for all experts of a draw.
    """
    ranks = rankdata(table, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    size = np.sqrt((ranks**2).sum(axis=-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(size > 0, ranks / size, np.nan)
    return np.einsum("mde,kde->mkd", unit, unit)


def pooled(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """Rank correlation over all experts of all layers with the raw values: what one budget for all layers relies on."""
    table = np.asarray([[v for row in side.values() for v in row] for side in (one, other)], dtype=np.float64)
    table = table[:, np.isfinite(table).all(axis=0)]
    return float(spearman(table[:, None])[0, 1, 0])


def short(interval: Interval) -> list[float | None]:
    """`[value, low, high]` to three digits, as records keep it; None for what is not a number."""
    found: list[float | None] = []
    for each in (interval["mean"], interval["low"], interval["high"]):
        found.append(round(each, 3) if np.isfinite(each) else None)
    return found


def long(values: Sequence[float | None]) -> Interval:
    """Back from `short`; NaN for None."""
    mean, low, high = (float("nan") if value is None else value for value in values)
    return Interval(mean=mean, low=low, high=high, n=0)


def _mean(values: Array, axis: int) -> Array:
    """Mean of the numbers among the values; NaN where there are none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis)


def _interval(value: float, draws: Array, number: int) -> Interval:
    draws = draws[np.isfinite(draws)]
    if len(draws) == 0:
        return Interval(mean=value, low=float("nan"), high=float("nan"), n=number)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(mean=value, low=float(low), high=float(high), n=number)
