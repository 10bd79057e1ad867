"""Packed expert layers of random codes at the dimensions of real models, for timing without quantizing anything."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.kernels.layer import Activation, ExpertEntry, ExpertLayer
from moesaic.packing.layout import EntryLayout

GROUP_SIZE = 64
VOCABULARY = 1024  # of whole models; small: with two layers a real one would take more time than they do


@dataclass(frozen=True)
class Dimensions:
    """An expert layer.

    Attributes:
        experts: held in memory; enough that a token's experts are not in the cache from the token before.
        top_k: experts of a token.
    """

    hidden: int
    intermediate: int
    experts: int
    top_k: int

    @property
    def expert_weights(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden * self.intermediate


MODELS = {
    "mixtral-8x7b": Dimensions(hidden=4096, intermediate=14336, experts=8, top_k=2),
    "qwen3-30b-a3b": Dimensions(hidden=2048, intermediate=768, experts=128, top_k=8),
}
PLANS = {"1": (1,), "2": (2,), "3": (3,), "4": (4,), "mixed 1-4": (1, 2, 3, 4), "mixed 2 3": (2, 3)}


def widths_of(plan: str, experts: int) -> tuple[int, ...]:
    """The widths of a plan, in turns."""
    cycle = PLANS[plan]
    return tuple(cycle[expert % len(cycle)] for expert in range(experts))


def random_layer(model: Dimensions, plan: str) -> ExpertLayer:
    """A layer with a gate, SiLU and random codes."""
    widths = widths_of(plan, model.experts)
    return ExpertLayer(
        gate_up=random_entry(EntryLayout(widths, 2, model.intermediate, model.hidden, GROUP_SIZE, False)),
        down=random_entry(EntryLayout(widths, 1, model.hidden, model.intermediate, GROUP_SIZE, False)),
        activation=Activation("silu", _silu),
    )


def _silu(hidden: Tensor) -> Tensor:
    gate, up = hidden.chunk(2, dim=-1)
    return functional.silu(gate) * up


def random_entry(layout: EntryLayout) -> ExpertEntry:
    """Random codes with scales of 1e-4, for every width of a layout."""
    tensors = {}
    for width, shape in layout.shapes().items():
        blobs = torch.randint(0, 2**63 - 1, (shape[0], shape[1] // 8), dtype=torch.int64).view(torch.uint8)
        matrix = layout.matrix(width)
        scale = torch.full((matrix.blocks * 16,), 1e-4, dtype=torch.bfloat16).view(torch.uint8)
        for start in range(0, shape[1], matrix.total_bytes):
            blobs[:, start : start + scale.numel()] = scale
        tensors[width] = mapped(blobs)
    return ExpertEntry(layout, tensors)


def mapped(tensor: Tensor) -> Tensor:
    """The bytes of a tensor as the mapping of a file, which is what those of a packed model are.

    The pages of a mapped file may be larger than those of a program's own memory (Linux 6.18 with ext4: 2 MB against
    4 kB), and are read a tenth faster.
    """
    with tempfile.NamedTemporaryFile() as file:
        tensor.numpy().tofile(file)
        file.flush()
        return torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=torch.uint8).view(tensor.shape)


def expert_bytes(layer: ExpertLayer, expert: int) -> int:
    """Packed bytes of one expert, scales and zero points included."""
    entries = (layer.gate_up, layer.down)
    return sum(entry.matrices * entry.layout.matrix(entry.widths[expert]).total_bytes for entry in entries)


def routes(model: Dimensions, tokens: int, count: int) -> list[Tensor]:
    """`count` routings `[tokens, top_k]` in which every expert gets about the same number of tokens.

    With one token, routing after routing goes through all experts before it comes back to the first.
    """
    order = torch.arange(count * tokens * model.top_k) % model.experts
    if tokens > 1:
        made = torch.Generator().manual_seed(0)
        rows = [torch.randperm(model.experts, generator=made)[: model.top_k] for _ in range(count * tokens)]
        order = torch.cat(rows)
    return list(order.view(count, tokens, model.top_k))
