"""Thresholds that make a rule run a given share of the expert activations.

The routing of the unpruned model is recorded once, layer by layer; the threshold is a quantile of the priorities on it.
With the rule at work the hidden states change, and with them the routing: so the share is measured in the model, and
the quantile moved until it is met.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.errors import UsageError
from moesaic.fit.text import batches
from moesaic.progress import SILENT, Progress
from moesaic.prune import Policy, Pruning, Routed
from moesaic.prune.decide import THRESHOLD, share_threshold
from moesaic.runtime.skipping import Skipping, attach, detach

ROUNDS = 4
CLOSE = 0.002  # of the share
_BATCH_TOKENS = 2048

Recorded = dict[str, list[Routed]]


def check_target(target: float, top_k: int) -> None:
    """Refuse a share that cannot be.

    Raises:
        UsageError: outside `(1 / k, 1]`.
    """
    if not 1 / top_k < target <= 1:
        raise UsageError(
            f"--target {target}: every token keeps at least one of its {top_k} experts; give a share above "
            f"{1 / top_k:.4g} and at most 1"
        )


def calibrate(
    model: PreTrainedModel,
    windows: Tensor,
    name: str,
    policy: Policy,
    target: float,
    *,
    progress: Progress = SILENT,
) -> Pruning:
    """Set a rule's thresholds for a share.

    Args:
        model: packed or not, without a policy at work.
        windows: `[windows, length]` calibration tokens.
        name: of the policy.
        policy: a rule, not one that is trained.
        target: share of the expert activations that is to run.
        progress: told of every window read.

    Raises:
        UsageError: see `check_target`.
    """
    detach(model)
    progress.start("calibrate", len(windows) * (ROUNDS + 1))
    recorded = record(model, windows, policy.needs, progress)
    top_k = next(iter(recorded.values()))[0].weights.shape[1]
    check_target(target, top_k)
    asked, best = target, None
    for _ in range(ROUNDS):
        layers = thresholds(policy, recorded, asked)
        found = Pruning(name, policy, top_k, target, 1.0, layers)
        found = replace(found, reached=measured_share(model, windows, found, progress))
        if best is None or abs(found.reached - target) < abs(best.reached - target):
            best = found
        if abs(found.reached - target) < CLOSE:
            break
        asked = min(1.0, max(1 / top_k, asked + target - found.reached))
    assert best is not None
    return replace(best, details={"tokens": windows.numel(), "window": windows.shape[1]})


def thresholds(policy: Policy, recorded: Recorded, share: float) -> dict[str, dict[str, Tensor]]:
    """The state of every layer for that share on the recorded routing."""
    states: dict[str, dict[str, Tensor]] = {}
    for layer, parts in recorded.items():
        ratios = torch.cat([part.ratio for part in parts])
        states[layer] = {"means": ratios.mean(dim=0)} if "means" in policy.needs else {}
    priorities = {layer: [policy(part, states[layer]) for part in parts] for layer, parts in recorded.items()}
    whole = share_threshold([each for parts in priorities.values() for each in parts], share)
    for layer, own in priorities.items():
        value = share_threshold(own, share) if policy.by_layer else whole
        states[layer][THRESHOLD] = torch.tensor(value)
    return states


@torch.inference_mode()
def record(
    model: PreTrainedModel, windows: Tensor, needs: tuple[str, ...] = (), progress: Progress = SILENT
) -> Recorded:
    """The routing of the unpruned model, without the hidden states; a part for each batch."""
    found: Recorded = {}

    def routing(layer: str, routed: Routed) -> Tensor:
        found.setdefault(layer, []).append(replace(routed, hidden=routed.hidden[:, :0]))
        return torch.ones_like(routed.weights, dtype=torch.bool)

    skipping = Skipping(model, needs)
    skipping.routing = routing
    try:
        read(model, windows, progress)
    finally:
        skipping.remove()
    return found


@torch.inference_mode()
def measured_share(model: PreTrainedModel, windows: Tensor, pruning: Pruning, progress: Progress = SILENT) -> float:
    """The share that runs with a policy at work."""
    skipping = attach(model, pruning)
    try:
        skipping.count()
        read(model, windows, progress)
        return skipping.share()
    finally:
        detach(model)


def read(model: PreTrainedModel, windows: Tensor, progress: Progress = SILENT) -> None:
    """Let the model read all windows."""
    for batch in batches(windows, _BATCH_TOKENS):
        inputs: dict[str, Any] = {"input_ids": batch.to(model.device), "use_cache": False}
        model.base_model(**inputs)
        progress.advance(len(batch))
