"""Intervals of what experiments measure: by resampling, and from few repeated runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from scipy.stats import t as student


class Interval(TypedDict):
    """A value with its 95 % interval, as it stands in records."""

    mean: float
    low: float
    high: float
    n: int


def over_runs(values: Sequence[float]) -> Interval:
    """Mean of independent runs (seeds) with Student's t interval; equal to the mean for a single run.

    Raises:
        ValueError: no runs.
    """
    if not values:
        raise ValueError("a mean of nothing")
    number, mean = len(values), math.fsum(values) / len(values)
    if number == 1:
        return Interval(mean=mean, low=mean, high=mean, n=1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (number - 1)
    half = float(student.ppf(0.975, number - 1)) * math.sqrt(variance / number)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=number)


def bootstrap(
    statistic: Callable[..., float], *columns: Sequence[float] | np.ndarray, draws: int = 2000, seed: int = 0
) -> Interval:
    """A statistic of paired columns with its percentile bootstrap interval, items drawn with replacement.

    Args:
        statistic: takes the columns, each `[n]`, and gives one number; draws that give NaN are left out.
        columns: of equal length n.
        draws: number of resamples.
        seed: of the draws.

    Raises:
        ValueError: columns of different lengths, or no items.
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    number = len(arrays[0])
    if number == 0 or any(len(array) != number for array in arrays):
        raise ValueError(f"columns of {[len(array) for array in arrays]} items; give equal numbers, at least one")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = rng.integers(number, size=number)
        found.append(statistic(*(array[chosen] for array in arrays)))
    drawn = np.asarray(found, dtype=np.float64)
    drawn = drawn[np.isfinite(drawn)]
    value = float(statistic(*arrays))
    if len(drawn) == 0:
        return Interval(mean=value, low=value, high=value, n=number)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(mean=value, low=float(low), high=float(high), n=number)
