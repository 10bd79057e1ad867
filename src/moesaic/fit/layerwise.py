"""Trains OTP's mask routers layer by layer, for models too large for a gradient through all of them.

What every layer did on the calibration text is recorded in files (`recording`), with a matrix G a token from which the
error of every mask follows: with the rescaled weights c of the places that run,

    e(mask) = sensitivity * (c - w)^T G (c - w)

Where the error is the squared change of the layer's output, its sensitivity is the KL of the model's outputs when
that layer alone is pruned by the ratio rule, over the squared error that this makes. Where it is a KL already
(`"fisher"`), the sensitivity is 1. Two losses:

- `"regression"`: the mask router's estimate m of every mask's error has least gamma deviance, `e / m + log m`. The
  samples of the error are products of the mean with heavy-tailed noise, for which this is the likelihood that suits;
  tokens with small errors count as much as those with large ones. No share takes part: one training serves all. The
  state that estimates best the last eighth of the tokens, which are not trained on, is kept.
- `"expected"`: the sum over the layers of the expected error under the mask router's distribution, which is exact
  since all errors are known, and `lambda * expected share` as in `mask_routers`.

Memory: a chunk of tokens of one layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.fit.hard_masks import share_cost
from moesaic.fit.recording import Recording, Stored
from moesaic.fit.text import batches
from moesaic.progress import SILENT, Progress
from moesaic.prune import Pruning, Routed
from moesaic.prune.decide import THRESHOLD, decide, rescale
from moesaic.prune.otp import Otp
from moesaic.runtime.skipping import Skipping

LOSSES = ("regression", "expected")
SENSITIVITY_WINDOWS = 4
_CHUNK = 4096  # tokens at a time
_STEP = 2048  # tokens of a step of regression
_CHECKS = 10  # of the tokens that are not trained on
_DECAY = 0.01


@dataclass
class Price:
    """lambda: what a run expert costs, so that the share comes to the target and stays there.

    Attributes:
        value: the slow part, which remembers.
        target: the share.
    """

    value: float
    target: float

    @classmethod
    def of(cls, loss: float, target: float) -> Price:
        """The first price: the slope at the target of a loss that grows with the square of the share skipped."""
        return cls(2 * max(loss, 1e-9) / max(1e-3, 1 - target), target)

    def now(self, share: float) -> float:
        """The price at that share: quickly more above the target, and slowly more for as long as it is above."""
        above = share - self.target
        self.value *= math.exp(above)
        return self.value * math.exp(10 * above)


def candidate_errors(weights: Tensor, gram: Tensor, masks: Tensor) -> Tensor:
    """Squared error of a layer's output under every candidate mask. `[tokens, masks]`

    Args:
        weights: `[tokens, k]`.
        gram: `[tokens, k, k]` inner products of the experts' outputs.
        masks: `[masks, k]`, 0 or 1.
    """
    change = torch.stack([rescale(weights, mask.expand_as(weights)) - weights for mask in masks], dim=1)  # (T, C, k)
    return torch.einsum("tcj,tji,tci->tc", change, gram, change).clamp(min=0)


def train_layers(
    model: PreTrainedModel,
    recording: Recording,
    policy: Otp,
    states: dict[str, dict[str, Tensor]],
    target: float,
    *,
    rule: Pruning,
    loss: str,
    steps: int,
    rate: float,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train the states in place.

    Args:
        model: without a policy at work.
        recording: of this model.
        policy: what to train.
        states: of every layer, to be changed.
        target: share of the expert activations that is to run.
        rule: the ratio rule at the same share.
        loss: one of `LOSSES`.
        steps: how many.
        rate: learning rate of AdamW at its highest.
        progress: told of steps.

    Returns:
        What to say of it: sensitivities, loss and share at the end, `stopped` after NaN.
    """
    weight = dict.fromkeys(recording.layers, 1.0)
    if recording.metric == "output":
        weight = sensitivities(model, recording.windows[:SENSITIVITY_WINDOWS], recording.layers, rule)
    _match_means(policy, states, recording.layers, weight)
    said: dict[str, Any] = {"sensitivity": dict(weight), "stopped": None}
    if loss == "expected":
        with torch.no_grad():
            parts = [_log_errors(policy, states[name], files) for name, files in recording.layers.items()]
            masks = policy.masks(rule.top_k).to(parts[0].device)
            cost = share_cost(torch.cat(parts), masks, target)
        for state in states.values():
            state["cost"].fill_(cost)
        found = _descend(policy, states, recording.layers, weight, target, steps=steps, rate=rate, progress=progress)
        return said | found
    progress.start("train", steps * len(recording.layers))
    for name, files in recording.layers.items():
        fit = _Regression(policy, states[name], files, weight[name])
        ended = _regress(fit, steps=steps, rate=rate, progress=progress)
        said.setdefault("deviance", {})[name] = [ended["first"], ended["best"]]
        said["stopped"] = said["stopped"] or ended["stopped"]
    return said


@torch.no_grad()
def _match_means(
    policy: Otp, states: dict[str, dict[str, Tensor]], stored: Mapping[str, Stored], weight: Mapping[str, float]
) -> None:
    """Set every bias so that the mean estimate of a mask is its mean error."""
    for name, files in stored.items():
        state, tokens = states[name], len(files.weights)
        masks = policy.masks(files.weights.shape[1]).to(state["bias"].device)
        error, estimate = torch.zeros(2, len(masks) - 1, device=masks.device)
        for first in range(0, tokens, _CHUNK):
            routed, gram = files.part(first, min(tokens, first + _CHUNK), masks.device)
            error += candidate_errors(routed.weights, gram, masks[:-1]).sum(dim=0)
            estimate += policy.log_errors(routed, state).exp().sum(dim=0)
        found = weight[name] * error / estimate
        state["bias"] += torch.where(found.isfinite() & (found > 0), found, 1.0).log()


def _log_errors(policy: Otp, state: dict[str, Tensor], files: Stored) -> Tensor:
    return policy.log_errors(files.part(0, _CHUNK, state["bias"].device)[0], state)


class _Regression:
    """Fits the estimate of one layer; the last eighth of the tokens says which state is the best.

    Attributes:
        state: of the layer, changed in place.
        keys: its entries that are trained.
    """

    def __init__(self, policy: Otp, state: dict[str, Tensor], files: Stored, weight: float) -> None:
        self.policy, self.state, self.files, self.weight = policy, state, files, weight
        self.keys = [key for key in state if key not in ("cost", THRESHOLD)]
        self.tokens, k = files.weights.shape
        self.trained = max(1, self.tokens - self.tokens // 8)
        self.masks = policy.masks(k).to(state["bias"].device)[:-1]

    def deviance(self, first: int, last: int) -> Tensor:
        """Mean over tokens and masks."""
        routed, gram = self.files.part(first, last, self.masks.device)
        error = self.weight * candidate_errors(routed.weights, gram, self.masks)
        found = self.policy.log_errors(routed, self.state)
        return (error * (-found).exp() + found).mean()

    @torch.no_grad()
    def checked(self) -> float:
        """Mean deviance of the tokens that are not trained on; of all where there are too few."""
        begin = self.trained if self.trained < self.tokens else 0
        total = 0.0
        for first in range(begin, self.tokens, _CHUNK):
            last = min(self.tokens, first + _CHUNK)
            total += float(self.deviance(first, last)) * (last - first)
        return total / (self.tokens - begin)

    def step(self, number: int, optimizer: torch.optim.Optimizer) -> bool:
        """One gradient step; False when something is not a number."""
        start = (number * _STEP) % max(1, self.trained - _STEP + 1)
        optimizer.zero_grad()
        loss = self.deviance(start, min(self.trained, start + _STEP))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_([self.state[key] for key in self.keys], 1.0)
        if not (math.isfinite(loss.item()) and bool(torch.isfinite(norm))):
            return False
        optimizer.step()
        return True

    def copy(self) -> dict[str, Tensor]:
        """The entries as they are now."""
        return {key: self.state[key].detach().clone() for key in self.keys}


def _regress(fit: _Regression, *, steps: int, rate: float, progress: Progress) -> dict[str, Any]:
    """Gradient steps of one layer; the state becomes the best on the tokens that are not trained on."""
    parameters = [fit.state[key].requires_grad_() for key in fit.keys]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=_DECAY)
    first = best = fit.checked()
    kept, stopped = fit.copy(), None
    every = max(1, steps // _CHECKS)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(rate, step, steps)
        if not fit.step(step, optimizer):
            stopped = f"NaN in step {step + 1}; the best state until then was kept"
            break
        progress.advance(1)
        if (step + 1) % every == 0 or step + 1 == steps:
            now = fit.checked()
            if now < best:
                best, kept = now, fit.copy()
    fit.state.update(kept)
    return {"first": first, "best": best, "stopped": stopped}


def _rate(highest: float, step: int, steps: int) -> float:
    """Warmed up over a tenth of the steps, then a cosine to zero."""
    return highest * min(1.0, 10 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.inference_mode()
def sensitivities(
    model: PreTrainedModel, windows: Tensor, stored: Mapping[str, Stored], rule: Pruning
) -> dict[str, float]:
    """KL of the outputs, in nats a token, for a squared error of 1 a token at that layer.

    Args:
        model: without a policy at work.
        windows: the first of those that were recorded.
        stored: what was recorded.
        rule: prunes one layer at a time.
    """
    found = {}
    teacher = [_log_probabilities(model, batch) for batch in batches(windows, 2048)]
    for layer, files in stored.items():
        routed, gram = files.part(0, windows.numel())
        kept = decide(rule.policy, routed, rule.layers[layer])
        change = rescale(routed.weights, kept) - routed.weights
        error = float(torch.einsum("tj,tji,ti->t", change, gram, change).mean())
        found[layer] = _divergence_of_one(model, windows, layer, rule, teacher) / max(error, 1e-12)
    return found


def _divergence_of_one(
    model: PreTrainedModel, windows: Tensor, layer: str, rule: Pruning, teacher: list[Tensor]
) -> float:
    def routing(name: str, routed: Routed) -> Tensor:
        if name == layer:
            return decide(rule.policy, routed, {THRESHOLD: rule.layers[layer][THRESHOLD].to(routed.hidden.device)})
        return torch.ones_like(routed.weights, dtype=torch.bool)

    skipping = Skipping(model)
    skipping.routing = routing
    total = 0.0
    try:
        for batch, wanted in zip(batches(windows, 2048), teacher, strict=True):
            found = _log_probabilities(model, batch)
            total += float((wanted.exp() * (wanted - found)).sum())
    finally:
        skipping.remove()
    return total / windows.numel()


def _log_probabilities(model: PreTrainedModel, batch: Tensor) -> Tensor:
    return model(input_ids=batch.to(model.device), use_cache=False).logits.float().log_softmax(dim=-1)


def _descend(
    policy: Otp,
    states: dict[str, dict[str, Tensor]],
    stored: Mapping[str, Stored],
    weight: Mapping[str, float],
    target: float,
    *,
    steps: int,
    rate: float,
    progress: Progress,
) -> dict[str, Any]:
    """Gradient steps over chunks of tokens; the states are those of the last step without NaN."""
    first = next(iter(stored.values()))
    tokens, k = first.weights.shape
    device = next(iter(states.values()))["cost"].device
    masks = policy.masks(k).to(device)
    trained = {layer: [key for key in state if key not in ("cost", THRESHOLD)] for layer, state in states.items()}
    parameters = [states[layer][key].requires_grad_() for layer, keys in trained.items() for key in keys]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    said: dict[str, Any] = {}

    def one(layer: str, start: int) -> tuple[Tensor, Tensor]:
        """Expected error and share of a layer on a chunk."""
        routed, gram = stored[layer].part(start, min(tokens, start + _CHUNK), device)
        likely = policy.logits(routed, states[layer]).softmax(dim=-1)
        error = weight[layer] * (likely * candidate_errors(routed.weights, gram, masks)).sum(dim=-1).mean()
        return error, (likely @ masks).mean()

    with torch.no_grad():
        found = [one(layer, 0) for layer in stored]
    share = float(sum(part for _, part in found)) / len(found)
    price = Price.of(float(sum(error for error, _ in found)), target)
    progress.start("train", steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(rate, step, steps)
        start = (step * _CHUNK) % max(1, tokens - _CHUNK + 1)
        optimizer.zero_grad()
        now, total, shares = price.now(share), 0.0, []
        for layer in stored:  # backward layer by layer, so that one layer's activations are held at a time
            error, part = one(layer, start)
            (error + now * part / len(stored)).backward()  # type: ignore[no-untyped-call]
            total += error.item()
            shares.append(part.item())
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if not (math.isfinite(total) and bool(torch.isfinite(norm))):
            said["stopped"] = f"NaN in step {step + 1}; the state before was kept"
            break
        optimizer.step()
        share = sum(shares) / len(shares)
        said |= {"error": total, "share": share, "lambda": price.value}
        progress.advance(1)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return said
