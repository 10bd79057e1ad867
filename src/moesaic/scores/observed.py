"""What a packed folder notes of every expert, whatever rule gave the bits: so that runs can be looked at side by side.

Router norms cost next to nothing. MaxVar reads the first layer of every expert, unless the run's own scores hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesaic.scores._protocol import ModelWeights
from moesaic.scores.max_var import max_row_variance
from moesaic.scores.router_norm import router_norms

Noted = dict[str, dict[str, list[float]]]


def observe(weights: ModelWeights, scores: Mapping[str, Any] | None = None) -> Noted:
    """Router norm after and, where it is known, before training, and MaxVar, of every expert.

    Args:
        weights: the model's.
        scores: file form of the scores that are kept beside this; what they hold is not worked out again.

    Returns:
        `router_norm`, `router_norm_initial`, `max_var` -> layer -> one number an expert; those that are known.
    """
    noted: Noted = {"router_norm": {layer: router_norms(weights.router(layer)).tolist() for layer in weights.experts}}
    before = {layer: weights.initial_router(layer) for layer in weights.experts}
    known = {layer: router_norms(router).tolist() for layer, router in before.items() if router is not None}
    if known:
        noted["router_norm_initial"] = known
    if not _holds_max_var(scores):
        noted["max_var"] = {
            layer: [max_row_variance(weights.first_layer(layer, expert)) for expert in range(count)]
            for layer, count in weights.experts.items()
        }
    return noted


def longest_notes(experts: Mapping[str, int]) -> Noted:
    """Notes as long as they can get in a file: their numbers are known only when the weights have been read."""
    longest = 1.2345678901234567e-05
    return {
        name: {layer: [longest] * count for layer, count in experts.items()}
        for name in ("router_norm", "router_norm_initial", "max_var")
    }


def _holds_max_var(scores: Mapping[str, Any] | None) -> bool:
    if scores is None or scores.get("format") != "moesaic-scores/1":
        return False
    parts = scores.get("details", {}).get("parts", {})
    return scores.get("rule") == "max_var" or "max_var" in parts
