"""Packed modules with a gradient: of what flows through them, not of the packed weights.

The kernels have no backward pass. Here a packed matrix is dequantized when it is used, and again when the gradient
comes back, so that no float weights wait in between. What fits into a budget is kept, which makes small models fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.kernels.layer import ExpertEntry, tokens_by_expert
from moesaic.packing.bits import BLOCK_ROWS
from moesaic.packing.layout import MatrixLayout, unpack_blocks
from moesaic.records import STORED_WIDTH
from moesaic.runtime.experts import PackedExperts
from moesaic.runtime.linear import PackedLinear

_CHUNK_BYTES = 8 << 20  # float32 that is dequantized at a time


class Weights:
    """Dequantized matrices, kept while there is room.

    Attributes:
        room: bytes that may still be kept.
    """

    def __init__(self, budget: int) -> None:
        self.room = budget
        self._kept: dict[tuple[int, int, int], Tensor] = {}

    def get(self, key: tuple[int, int, int], make: Callable[[], Tensor]) -> Tensor:
        """The matrix `[out, in]` float32."""
        if key in self._kept:
            return self._kept[key]
        made = make()
        if made.nbytes <= self.room:
            self.room -= made.nbytes
            self._kept[key] = made
        return made


class _Product(torch.autograd.Function):
    """`x W^T`, with `W` made anew for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        ctx.weight = weight
        return x @ weight().to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad @ ctx.weight().to(grad.dtype), None


def product(x: Tensor, weight: Callable[[], Tensor]) -> Tensor:
    """`[..., in]` -> `[..., out]`; differentiable in `x`."""
    return _Product.apply(x, weight)  # type: ignore[no-untyped-call]


@contextmanager
def differentiable(model: nn.Module, budget: int) -> Iterator[None]:
    """Inside, the packed modules of a model have gradients.

    Args:
        model: packed.
        budget: bytes of dequantized weights that may be kept.
    """
    weights = Weights(budget)
    changed: list[tuple[nn.Module, Any]] = []
    for module in model.modules():
        before = vars(module).get("forward")  # set where one such block is inside another
        if isinstance(module, PackedExperts):
            module.forward = partial(_experts, module, weights)  # type: ignore[method-assign]
        elif isinstance(module, PackedLinear):
            module.forward = partial(_linear, module, weights)  # type: ignore[method-assign]
        else:
            continue
        changed.append((module, before))
    try:
        yield
    finally:
        for module, before in changed:
            del module.forward
            if before is not None:
                module.forward = before


def dequantized(blob: Tensor, layout: MatrixLayout) -> Tensor:
    """A packed matrix as float32 `[rows, columns]`."""
    step = max(1, _CHUNK_BYTES // (4 * layout.groups * layout.group_size * BLOCK_ROWS))
    parts = [
        unpack_blocks(blob, layout, first, min(layout.blocks, first + step)).dequantize()
        for first in range(0, layout.blocks, step)
    ]
    return torch.cat(parts).to(blob.device)


def dequantized_bytes(model: nn.Module) -> int:
    """How much all packed matrices would take as float32."""
    total = 0
    for module in model.modules():
        if isinstance(module, PackedExperts):
            for entry in (module.gate_up.layout, module.down.layout):
                total += 4 * module.experts * entry.matrices * entry.rows * entry.columns
        elif isinstance(module, PackedLinear):
            total += 4 * module.layout.rows * module.layout.columns
    return total


def _linear(module: PackedLinear, weights: Weights, x: Tensor) -> Tensor:
    def make() -> Tensor:
        return dequantized(module.packed, module.layout)

    out = product(x, partial(weights.get, (id(module), 0, 0), make))
    return out if module.bias is None else out + module.bias.to(out.dtype)


def _experts(
    module: PackedExperts, weights: Weights, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """As `PackedExperts.forward`, without one-hot masks."""
    layer = module.packed_layer()
    tokens, results = [], []
    for expert, token, place in tokens_by_expert(top_k_index, layer.experts):
        inner = _entry(hidden_states[token], layer.gate_up, expert, weights)
        if layer.gate_up_bias is not None:
            inner = inner + layer.gate_up_bias[expert].to(inner.dtype)
        result = _entry(layer.activation.function(inner), layer.down, expert, weights)
        if layer.down_bias is not None:
            result = result + layer.down_bias[expert].to(result.dtype)
        tokens.append(token)
        results.append(result * top_k_weights[token, place, None].to(result.dtype))
    if not tokens:
        return torch.zeros_like(hidden_states)
    return torch.zeros_like(hidden_states).index_add(0, torch.cat(tokens), torch.cat(results))


def _entry(x: Tensor, entry: ExpertEntry, expert: int, weights: Weights) -> Tensor:
    if entry.widths[expert] == STORED_WIDTH:
        return nn.functional.linear(x, entry.stored(expert).to(x.dtype))
    parts = []
    for matrix in range(entry.matrices):
        make = partial(_dequantized_matrix, entry, expert, matrix)
        parts.append(product(x, partial(weights.get, (id(entry), expert, matrix), make)))
    return torch.cat(parts, dim=-1)


def _dequantized_matrix(entry: ExpertEntry, expert: int, matrix: int) -> Tensor:
    return dequantized(*entry.blob(expert, matrix))
