"""The router norm in training: how early its final order is there, and when the final norm stands in for the change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.weights import InitialRouters
from moesaic.scores.router_norm import router_norms

from .correlate import Correlations, short
from .values import CHANGE, FINAL, TRUTH, Values


def snapshots(run: Path) -> dict[int, Path]:
    """Step -> router snapshot of a training run, in order."""
    paths = sorted((run / "routers").glob("step_*.safetensors"))
    return {int(path.stem.removeprefix("step_")): path for path in paths}


def norms_by_step(checkpoint: Checkpoint, run: Path) -> dict[int, dict[str, list[float]]]:
    """Step -> layer -> norm of every expert's router vector."""
    found = {}
    for step, path in snapshots(run).items():
        routers = InitialRouters.open(path)
        found[step] = {
            layer.name: router_norms(routers.router(checkpoint, layer)).tolist() for layer in checkpoint.layers
        }
    return found


def early_order(norms: dict[int, dict[str, list[float]]], values: Values, *, draws: int) -> list[dict[str, Any]]:
    """For every snapshot: rank correlation of the change so far with the final change, and with the truth.

    Args:
        norms: from `norms_by_step`, with step 0.
        values: with the final change and the truth.
        draws: bootstrap resamples.
    """
    table: Values = {name: values[name] for name in (CHANGE, TRUTH)}
    for step, layers in norms.items():
        if step:
            table[str(step)] = {
                layer: [now - first for now, first in zip(row, norms[0][layer], strict=True)]
                for layer, row in layers.items()
            }
    found = Correlations(table, draws=draws)
    return [
        {
            "step": step,
            "mean change": round(float(np.mean([table[str(step)][layer] for layer in found.layers])), 4),
            "with final change": short(found.overall(str(step), CHANGE)),
            "with truth": short(found.overall(str(step), TRUTH)),
        }
        for step in norms
        if step
    ]


def stand_in(values: Values) -> dict[str, dict[str, float]]:
    """Layer -> how well the final norm orders experts as the change does, and what decides it.

    The final norm is the initial one plus the change. Were the two independent, their Pearson correlation with the
    change would be `1 / sqrt(1 + (s0 / s)^2)`, with `s0` the spread (standard deviation over experts) of the initial
    norms and `s` that of the changes: the final norm is a stand-in where the initial norms differ much less than the
    changes do.
    """
    found = {}
    for layer, final in values[FINAL].items():
        initial, change = values["initial norm"][layer], values[CHANGE][layer]
        ratio = float(np.std(initial) / np.std(change))
        found[layer] = {
            "spearman": float(spearmanr(final, change).statistic),
            "pearson": float(np.corrcoef(final, change)[0, 1]),
            "pearson if independent": 1 / math.sqrt(1 + ratio**2),
            "initial mean": float(np.mean(initial)),
            "initial spread": float(np.std(initial)),
            "change mean": float(np.mean(change)),
            "change spread": float(np.std(change)),
            "initial with change": float(spearmanr(initial, change).statistic),
        }
    return {layer: {name: round(value, 4) for name, value in row.items()} for layer, row in found.items()}
