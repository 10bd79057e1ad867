"""Trains OTP's mask routers layer by layer, for models too large for a gradient through all of them.

One pass of the unpruned model over the calibration text writes, for every layer and token, the input of the experts,
their weights w and the Gram matrix `G_ij = <E_i(x), E_j(x)>` of their outputs to disk. What a mask does to the layer's
output then needs no expert any more: with the rescaled weights c of the places that run,

    e(mask) = || sum_j (c_j - w_j) E_j(x) ||^2 = (c - w)^T G (c - w)

So the error of every candidate is known, the expected error under the mask router's distribution has an exact
gradient, and no mask is sampled. The loss is the sum over the layers of `sensitivity * expected error`, and
`lambda * expected share` as in `mask_routers`. A layer's sensitivity is the KL of the model's outputs when that layer
alone is pruned by the ratio rule, over the squared error that this makes.

Where a gradient can go through the whole model, the error is measured in what it does to the outputs instead of in
the size of the change (`use_fisher`): G becomes the second-order form of the KL, and no sensitivity is needed.

Memory: a batch of activations, and the pages of the files in use. Disk: `2 hidden + 4 k (k + 1)` bytes a token and
layer.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.fit.rules import read
from moesaic.fit.text import batches
from moesaic.progress import SILENT, Progress
from moesaic.prune import Pruning, Routed
from moesaic.prune.decide import THRESHOLD, decide, rescale, sort_places
from moesaic.prune.otp import Otp
from moesaic.runtime.skipping import Skipping, expert_modules

METRICS = ("fisher", "output")
SENSITIVITY_WINDOWS = 4
_CHUNK = 4096  # tokens of a step


@dataclass(frozen=True)
class Stored:
    """What a layer did on the calibration text, in files.

    Attributes:
        hidden: `[tokens, hidden]` float16.
        weights: `[tokens, k]` float32, sorted.
        gram: `[tokens, k, k]` float32.
    """

    hidden: np.memmap
    weights: np.memmap
    gram: np.memmap

    def part(self, first: int, last: int, device: torch.device | str = "cpu") -> tuple[Routed, Tensor]:
        """Tokens `first … last - 1`: their routing, and the Gram matrices."""
        weights, hidden, gram = (
            torch.from_numpy(np.array(file[first:last])).to(device).float()
            for file in (self.weights, self.hidden, self.gram)
        )
        return Routed(weights, torch.zeros_like(weights, dtype=torch.int64), hidden, 0), gram


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
    windows: Tensor,
    policy: Otp,
    states: dict[str, dict[str, Tensor]],
    target: float,
    *,
    rule: Pruning,
    steps: int,
    rate: float,
    metric: str = "fisher",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train the states in place.

    Args:
        model: without a policy at work.
        windows: `[windows, length]` calibration tokens.
        policy: what to train.
        states: of every layer, to be changed.
        target: share of the expert activations that is to run.
        rule: the ratio rule at the same share.
        steps: how many.
        rate: learning rate of AdamW at its highest.
        metric: `"fisher"`, which needs a model whose modules have gradients, or `"output"`.
        progress: told of windows read, then of steps.

    Returns:
        What to say of it: sensitivities, loss and share at the end, `stopped` after NaN.
    """
    with tempfile.TemporaryDirectory(prefix="moesaic-") as folder:
        stored = record_layers(model, windows, Path(folder), progress)
        if metric == "fisher":
            use_fisher(model, windows, stored, progress)
            weight = dict.fromkeys(stored, 1.0)
        else:
            weight = sensitivities(model, windows[:SENSITIVITY_WINDOWS], stored, rule)
        return _descend(policy, states, stored, weight, target, steps=steps, rate=rate, progress=progress)


@torch.inference_mode()
def record_layers(
    model: PreTrainedModel, windows: Tensor, folder: Path, progress: Progress = SILENT
) -> dict[str, Stored]:
    """Run the unpruned model over the windows and keep what every expert layer did."""
    modules = expert_modules(model)
    stored: dict[str, Stored] = {}
    filled = dict.fromkeys(modules, 0)

    def routing(layer: str, routed: Routed) -> Tensor:
        if layer not in stored:
            stored[layer] = _make_files(folder, len(stored), windows.numel(), routed)
        first, last = filled[layer], filled[layer] + len(routed.hidden)
        files = stored[layer]
        files.hidden[first:last] = routed.hidden.half().cpu().numpy()
        files.weights[first:last] = routed.weights.float().cpu().numpy()
        files.gram[first:last] = _gram(modules[layer], routed).cpu().numpy()
        filled[layer] = last
        return torch.ones_like(routed.weights, dtype=torch.bool)

    skipping = Skipping(model)
    skipping.routing = routing
    progress.start("read", len(windows))
    try:
        read(model, windows, progress)
    finally:
        skipping.remove()
    return stored


def use_fisher(
    model: PreTrainedModel, windows: Tensor, stored: Mapping[str, Stored], progress: Progress = SILENT
) -> None:
    """Put in place of the Gram matrices what makes the error a KL in nats, by its second-order form.

    `KL ~ 1/2 d^T F d` for a change d of a layer's output, F = E[g g^T], g the gradient of `log p(y)` by that output
    with y drawn from the model itself (a Gauss-Newton form). One draw a token gives `u_j = <g, E_j(x)>` for every
    place at once, as the gradient by the routing weights; `u u^T / 2` takes the Gram matrix' place. It counts what a
    change does to all later tokens of the sequence. One draw is noisy; many tokens make up for that.
    """
    generator = torch.Generator().manual_seed(0)
    modules = expert_modules(model)
    progress.start("curvature", len(windows))
    first = 0
    for batch in batches(windows, 1024):
        slopes = _slopes(model, batch, modules, generator)
        last = first + batch.numel()
        for layer, files in stored.items():
            u = slopes[layer]
            files.gram[first:last] = (0.5 * u[:, :, None] * u[:, None, :]).numpy()
        first = last
        progress.advance(len(batch))


def _slopes(
    model: PreTrainedModel, batch: Tensor, modules: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Tensor]:
    """Gradient of the log probability of tokens drawn from the model by every routing weight, in sorted places."""
    added: dict[str, tuple[Tensor, Tensor]] = {}

    def before(name: str, _module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, index, weights = args
        order = sort_places(weights.detach(), index)[2]
        zero = torch.zeros_like(weights).requires_grad_()
        added[name] = (zero, order)
        return hidden, index, weights + zero

    hooks = [module.register_forward_pre_hook(partial(before, name)) for name, module in modules.items()]
    try:
        logits = model(input_ids=batch.to(model.device), use_cache=False).logits.float().flatten(0, 1)
    finally:
        for hook in hooks:
            hook.remove()
    noise = torch.rand(logits.shape, generator=generator).clamp(min=1e-9).to(logits.device)
    drawn = (logits.detach() - (-noise.log()).log()).argmax(dim=-1)
    leaves = [zero for zero, _ in added.values()]
    grads = torch.autograd.grad(-torch.nn.functional.cross_entropy(logits, drawn, reduction="sum"), leaves)
    return {
        name: grad.float().gather(-1, order).cpu()
        for (name, (_, order)), grad in zip(added.items(), grads, strict=True)
    }


def _make_files(folder: Path, number: int, tokens: int, routed: Routed) -> Stored:
    k, hidden = routed.weights.shape[1], routed.hidden.shape[1]
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "hidden": ((tokens, hidden), np.float16),
        "weights": ((tokens, k), np.float32),
        "gram": ((tokens, k, k), np.float32),
    }
    files = {
        name: np.memmap(folder / f"{number}.{name}", dtype=kind, mode="w+", shape=shape)
        for name, (shape, kind) in shapes.items()
    }
    return Stored(**files)


def _gram(module: Any, routed: Routed) -> Tensor:
    """Inner products of the outputs of a token's experts. `[tokens, k, k]`"""
    one = torch.ones_like(routed.weights[:, :1])
    outputs = [
        module.forward(routed.hidden, routed.experts[:, place : place + 1].contiguous(), one).float()
        for place in range(routed.weights.shape[1])
    ]
    stacked = torch.stack(outputs, dim=1)  # (T, k, H)
    return stacked @ stacked.transpose(1, 2)


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
    said: dict[str, Any] = {"sensitivity": dict(weight), "stopped": None}

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
            group["lr"] = rate * min(1.0, 10 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))
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
