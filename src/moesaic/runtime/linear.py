"""A linear layer whose weight stays packed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moesaic.kernels import select
from moesaic.packing.layout import MatrixLayout


class PackedLinear(nn.Module):
    """Takes the place of `nn.Linear`.

    Attributes:
        packed: `[layout.total_bytes]` uint8, the blob of the weight.
        bias: `[out_features]` or None.
        weight: always None; some architectures look whether there is a float weight.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, layout: MatrixLayout, *, bias_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.layout = layout
        self.in_features, self.out_features = layout.columns, layout.rows
        self.weight = None
        self.register_buffer("packed", torch.empty(layout.total_bytes, dtype=torch.uint8, device="meta"))
        if bias_dtype is None:
            self.bias = None
        else:
            bias = torch.empty(layout.rows, dtype=bias_dtype, device="meta")
            self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` -> `[..., out_features]`"""
        return select(x.device.type).linear(x, self.packed, self.layout, self.bias)

    def extra_repr(self) -> str:
        """Shape and width, for `print(model)`."""
        return (
            f"in={self.in_features}, out={self.out_features}, bits={self.layout.bits}, group={self.layout.group_size}"
        )
