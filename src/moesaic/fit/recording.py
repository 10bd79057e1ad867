"""What every expert layer does on a calibration text, recorded once and kept in files.

For each layer and token: the input of the experts, which they are, their weights w, and a matrix G from which the
error of every mask follows without running an expert again: `(c - w)^T G (c - w)` for the rescaled weights c of the
places that run. There are two kinds of G:

- `"output"`: the Gram matrix `G_ij = <E_i(x), E_j(x)>` of the experts' outputs, so that the error is the squared
  change of the layer's output. Needs forward passes only.
- `"fisher"`: the error is a KL in nats, by its second-order form `1/2 d^T F d` for a change d of the layer's output,
  F = E[g g^T], g the gradient of `log p(y)` by that output with y drawn from the model itself (a Gauss-Newton form).
  One draw a token gives `u_j = <g, E_j(x)>` for every place at once, as the gradient by the routing weights, and
  G = `u u^T / 2`. It counts what a change does to all later tokens of the sequence. One draw is noisy; many tokens
  make up for that. Needs a gradient through the whole model.

One recording serves every target share and every design of mask router.

Memory: a batch of activations, and the pages of the files in use. Disk: `2 hidden + 4 k (k + 2)` bytes a token and
layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.fit.rules import Recorded, read
from moesaic.fit.text import batches
from moesaic.progress import SILENT, Progress
from moesaic.prune import Routed
from moesaic.prune.decide import sort_places
from moesaic.runtime.skipping import Skipping, expert_counts, expert_modules

METRICS = ("fisher", "output")
_GRADIENT_TOKENS = 1024  # of a batch that is differentiated


@dataclass(frozen=True)
class Stored:
    """What a layer did on the calibration text, in files.

    Attributes:
        hidden: `[tokens, hidden]` float16.
        weights: `[tokens, k]` float32, sorted.
        experts: `[tokens, k]` int32, in the same order.
        gram: `[tokens, k, k]` float32, the matrix G.
        count: experts of the layer.
    """

    hidden: np.memmap
    weights: np.memmap
    experts: np.memmap
    gram: np.memmap
    count: int

    def part(self, first: int, last: int, device: torch.device | str = "cpu") -> tuple[Routed, Tensor]:
        """Tokens `first … last - 1`: their routing, and the matrices G."""
        weights, hidden, gram, experts = (
            torch.from_numpy(np.array(file[first:last])).to(device)
            for file in (self.weights, self.hidden, self.gram, self.experts)
        )
        return Routed(weights, experts.long(), hidden.float(), self.count), gram

    def routing(self) -> Routed:
        """All tokens without their hidden states."""
        weights, experts = (torch.from_numpy(np.array(file)) for file in (self.weights, self.experts))
        return Routed(weights, experts.long(), torch.zeros(len(weights), 0), self.count)


@dataclass(frozen=True)
class Recording:
    """All layers of a model.

    Attributes:
        metric: which G was recorded, one of `METRICS`.
        windows: the tokens that were read, `[windows, length]`.
        layers: layer name -> what it did.
    """

    metric: str
    windows: Tensor
    layers: Mapping[str, Stored]

    def routing(self) -> Recorded:
        """What the rules are calibrated on."""
        return {layer: [stored.routing()] for layer, stored in self.layers.items()}


@dataclass
class _Writer:
    """Makes the files of a layer when its first tokens come, and adds to them."""

    folder: Path
    tokens: int
    stored: dict[str, Stored] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)

    def add(self, layer: str, routed: Routed, gram: Tensor) -> None:
        """The next tokens of a layer."""
        if layer not in self.stored:
            self.stored[layer] = self._make(routed)
        files, first = self.stored[layer], self.filled.get(layer, 0)
        last = first + len(routed.hidden)
        files.hidden[first:last] = routed.hidden.detach().half().cpu().numpy()
        files.weights[first:last] = routed.weights.detach().float().cpu().numpy()
        files.experts[first:last] = routed.experts.int().cpu().numpy()
        files.gram[first:last] = gram.detach().float().cpu().numpy()
        self.filled[layer] = last

    def _make(self, routed: Routed) -> Stored:
        k, hidden = routed.weights.shape[1], routed.hidden.shape[1]
        number = len(self.stored)

        def file(name: str, kind: Any, *shape: int) -> np.memmap:
            return np.memmap(self.folder / f"{number}.{name}", dtype=kind, mode="w+", shape=(self.tokens, *shape))

        return Stored(
            hidden=file("hidden", np.float16, hidden),
            weights=file("weights", np.float32, k),
            experts=file("experts", np.int32, k),
            gram=file("gram", np.float32, k, k),
            count=routed.count,
        )


def record_layers(
    model: PreTrainedModel, windows: Tensor, folder: Path, *, metric: str = "fisher", progress: Progress = SILENT
) -> Recording:
    """Let the unpruned model read the windows, and keep what every expert layer did.

    Args:
        model: without a policy at work; for `"fisher"` one whose modules have gradients.
        windows: `[windows, length]` tokens.
        folder: where the files go; they are in use for as long as the recording is.
        metric: one of `METRICS`.
        progress: told of windows read.
    """
    writer = _Writer(folder, windows.numel())
    progress.start("read", len(windows))
    if metric == "output":
        _record_outputs(model, windows, writer, progress)
    else:
        _record_curvature(model, windows, writer, progress)
    return Recording(metric, windows, writer.stored)


@torch.inference_mode()
def _record_outputs(model: PreTrainedModel, windows: Tensor, writer: _Writer, progress: Progress) -> None:
    modules = expert_modules(model)

    def routing(layer: str, routed: Routed) -> Tensor:
        writer.add(layer, routed, _gram(modules[layer], routed))
        return torch.ones_like(routed.weights, dtype=torch.bool)

    skipping = Skipping(model)
    skipping.routing = routing
    try:
        read(model, windows, progress)
    finally:
        skipping.remove()


def _gram(module: Any, routed: Routed) -> Tensor:
    """Inner products of the outputs of a token's experts. `[tokens, k, k]`"""
    one = torch.ones_like(routed.weights[:, :1])
    outputs = [
        module.forward(routed.hidden, routed.experts[:, place : place + 1].contiguous(), one).float()
        for place in range(routed.weights.shape[1])
    ]
    stacked = torch.stack(outputs, dim=1)  # (T, k, H)
    return stacked @ stacked.transpose(1, 2)


def _record_curvature(model: PreTrainedModel, windows: Tensor, writer: _Writer, progress: Progress) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = expert_counts(model)
    for batch in batches(windows, _GRADIENT_TOKENS):
        for layer, (hidden, weights, experts, u) in _slopes(model, batch, generator).items():
            routed = Routed(weights, experts, hidden, counts[layer])
            writer.add(layer, routed, 0.5 * u[:, :, None] * u[:, None, :])
        progress.advance(len(batch))


def _slopes(
    model: PreTrainedModel, batch: Tensor, generator: torch.Generator
) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Layer -> hidden states, sorted weights, experts, and u.

    u is the gradient of the log probability of tokens drawn from the model by every routing weight.
    """
    seen: dict[str, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = {}

    def before(name: str, _module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, index, weights = args
        zero = torch.zeros_like(weights).requires_grad_()
        seen[name] = (hidden.detach(), *sort_places(weights.detach(), index), zero)
        return hidden, index, weights + zero

    modules = expert_modules(model)
    hooks = [module.register_forward_pre_hook(partial(before, name)) for name, module in modules.items()]
    try:
        logits = model(input_ids=batch.to(model.device), use_cache=False).logits.float().flatten(0, 1)
    finally:
        for hook in hooks:
            hook.remove()
    noise = torch.rand(logits.shape, generator=generator).clamp(min=1e-9).to(logits.device)
    drawn = (logits.detach() - (-noise.log()).log()).argmax(dim=-1)
    leaves = [zero for *_, zero in seen.values()]
    grads = torch.autograd.grad(-torch.nn.functional.cross_entropy(logits, drawn, reduction="sum"), leaves)
    return {
        name: (hidden, ranked, experts, grad.float().gather(-1, order))
        for (name, (hidden, ranked, experts, order, _)), grad in zip(seen.items(), grads, strict=True)
    }
