"""The slow, obvious answer in torch: unpack some rows, multiply, go on. Always there; the oracle of every test.

Memory: at most `DEQUANTIZED_BYTES` of a matrix are dequantized at a time, never a matrix of a large model and never
a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moesaic.kernels.layer import ExpertEntry, ExpertLayer, tokens_by_expert
from moesaic.packing.bits import BLOCK_ROWS
from moesaic.packing.layout import MatrixLayout, unpack_blocks
from moesaic.records import STORED_WIDTH

NAME = "reference"
DEQUANTIZED_BYTES = 8 << 20  # of float32; what is around it while it is made takes a few times that


def linear(x: Tensor, blob: Tensor, layout: MatrixLayout, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` with a packed `W`.

    Args:
        x: `[..., columns]`, float32, bfloat16 or float16.
        blob: `[layout.total_bytes]` uint8.
        layout: shape and width of `W`.
        bias: `[rows]` or None.

    Returns:
        `[..., rows]` in the dtype of `x`; products are accumulated in float32 (float64 for float64 input).
    """
    wide = x if x.dtype == torch.float64 else x.float()
    row_bytes = 4 * layout.groups * layout.group_size
    step = max(1, DEQUANTIZED_BYTES // (row_bytes * BLOCK_ROWS))
    parts = []
    for first in range(0, layout.blocks, step):
        rows = unpack_blocks(blob, layout, first, min(layout.blocks, first + step)).dequantize()
        parts.append(wide @ rows.to(device=wide.device, dtype=wide.dtype).T)
    out = torch.cat(parts, dim=-1)
    if bias is not None:
        out = out + bias.to(out.dtype)
    return out.to(x.dtype)


def experts(x: Tensor, top_k_index: Tensor, top_k_weights: Tensor, layer: ExpertLayer) -> Tensor:
    """A whole expert layer: every token through its experts, weighted and summed.

    Args:
        x: `[tokens, hidden]`.
        top_k_index: `[tokens, k]` integers; a value below 0 is an empty place: no expert runs there, and the weights of
            an expert that nobody asks for are not read.
        top_k_weights: `[tokens, k]`.
        layer: the packed layer.

    Returns:
        `[tokens, hidden]` in the dtype of `x`.

    Raises:
        UsageError: `top_k_index` names an expert that the layer has not.
    """
    out = torch.zeros(x.shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
    for expert, token, place in tokens_by_expert(top_k_index, layer.experts):
        hidden = _entry(x[token], layer.gate_up, expert)
        if layer.gate_up_bias is not None:
            hidden = hidden + layer.gate_up_bias[expert].to(hidden.dtype)
        hidden = layer.activation.function(hidden)
        result = _entry(hidden, layer.down, expert)
        if layer.down_bias is not None:
            result = result + layer.down_bias[expert].to(result.dtype)
        weighted = result * top_k_weights[token, place, None].to(result.dtype)
        out.index_add_(0, token, weighted.to(out.dtype))
    return out.to(x.dtype)


def _entry(x: Tensor, entry: ExpertEntry, expert: int) -> Tensor:
    """`[tokens, columns]` through all matrices of an entry, side by side. `[tokens, matrices * rows]`"""
    if entry.widths[expert] == STORED_WIDTH:
        return torch.nn.functional.linear(x, entry.stored(expert).to(x.dtype))
    return torch.cat([linear(x, *entry.blob(expert, matrix)) for matrix in range(entry.matrices)], dim=-1)
