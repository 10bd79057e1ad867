"""Does the change of a router's norm rank experts as the paper says? Rank correlations within each layer.

The truth is the rise of the test loss when one expert alone goes to one bit (`Settings.truth`). `rise for each use` is
that rise over the share of tokens that the expert serves: how sensitive the model is to it when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from experiments.intervals import bootstrap, over_runs

from moesaic.scores import MaxVar, RouterNorm

from .measure import Line, Measured

CHANGE, NORM, FREQUENCY, WEIGHT, MAX_VAR = "norm change", "final norm", "frequency", "routing weight", "MaxVar"
RISE, EACH_USE, HALF, OTHER_HALF = "rise", "rise for each use", "rise, half", "rise, other half"
Values = dict[str, dict[str, list[float]]]  # name -> layer -> one number an expert


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, NaN where one side is constant."""
    ranks = [_ranks(np.asarray(each, dtype=np.float64)) for each in (a, b)]
    deviations = [each - each.mean() for each in ranks]
    power = float((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum())
    return float((deviations[0] * deviations[1]).sum()) / power**0.5 if power > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def rise(measured: Measured) -> dict[str, np.ndarray]:
    """Layer -> `[experts, sentences]`, what the loss of each sentence rises by when that expert alone is rounded."""
    full = np.asarray(measured.lines.found[f"{measured.seed}|full"]["loss"])

    def of(layer: str, expert: int) -> np.ndarray:
        line: Line = measured.lines.found[measured.truth_key(layer, expert)]
        return np.asarray(line["loss"]) - full

    return {
        layer: np.stack([of(layer, expert) for expert in range(count)])
        for layer, count in measured.weights.experts.items()
    }


def expert_values(measured: Measured) -> Values:
    """What is known of every expert of one model; larger = more of what the name says."""
    stats = measured.observed[0].layers
    change, norm = RouterNorm()(measured.weights).layers, RouterNorm(use_initial=False)(measured.weights).layers
    found: Values = {
        CHANGE: {layer: [-value for value in values] for layer, values in change.items()},
        NORM: {layer: [-value for value in values] for layer, values in norm.items()},
        FREQUENCY: {layer: (each.count / each.tokens).tolist() for layer, each in stats.items()},
        WEIGHT: {layer: (each.mass / each.tokens).tolist() for layer, each in stats.items()},
        MAX_VAR: {layer: list(values) for layer, values in MaxVar()(measured.weights).layers.items()},
    }
    return found | _truths(measured)


def _truths(measured: Measured) -> Values:
    stats = measured.observed[0].layers
    found: Values = {RISE: {}, EACH_USE: {}, HALF: {}, OTHER_HALF: {}}
    for layer, rises in rise(measured).items():
        mean, share = rises.mean(axis=1), (stats[layer].count / stats[layer].tokens).numpy()
        found[RISE][layer] = mean.tolist()
        found[EACH_USE][layer] = (mean / np.maximum(share, 1 / stats[layer].tokens)).tolist()
        found[HALF][layer] = rises[:, ::2].mean(axis=1).tolist()
        found[OTHER_HALF][layer] = rises[:, 1::2].mean(axis=1).tolist()
    return found


PAIRS = (
    *((CHANGE, other) for other in (FREQUENCY, WEIGHT, NORM, MAX_VAR)),
    *((name, RISE) for name in (CHANGE, NORM, FREQUENCY, WEIGHT, MAX_VAR)),
    (CHANGE, EACH_USE),
    (NORM, EACH_USE),
    (FREQUENCY, EACH_USE),
    (HALF, OTHER_HALF),  # how well the truth is known: between the two halves of the sentences
)


def correlations(values: Mapping[int, Values], draws: int) -> list[dict[str, Any]]:
    """Each pair: by layer and seed (interval over experts), and the mean (intervals over layers, and over seeds)."""
    rows = []
    for one, other in PAIRS:
        each = [
            {"seed": seed, "layer": layer, **bootstrap(spearman, found[one][layer], found[other][layer], draws=draws)}
            for seed, found in values.items()
            for layer in found[one]
        ]
        means = [row["mean"] for row in each if np.isfinite(row["mean"])]
        by_seed = [
            float(np.nanmean([row["mean"] for row in each if row["seed"] == seed]))
            for seed in values
            if any(row["seed"] == seed and np.isfinite(row["mean"]) for row in each)
        ]
        if means:
            row = {
                "of": one,
                "with": other,
                "layers": bootstrap(np.mean, means, draws=draws),
                "seeds": over_runs(by_seed),
            }
            rows.append({**row, "each": each})
    return rows
