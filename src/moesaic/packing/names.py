"""Names and shapes of the tensors of a packed model: who lies where, before a byte is written."""

from __future__ import annotations

import math

import torch

from moesaic.checkpoint.writer import TensorSpec
from moesaic.families import MoeLayer
from moesaic.packing.layout import EntryLayout
from moesaic.records import ENTRIES, STORED_WIDTH, LayerBits


def is_packed(bits: LayerBits) -> bool:
    """Whether any expert of the layer is packed; a layer without is left as it was."""
    return any(width != STORED_WIDTH for width in (*bits.gate_up, *bits.down))


def entry_layouts(layer: MoeLayer, bits: LayerBits, group_size: int, symmetric: bool) -> dict[str, EntryLayout]:
    """The layouts of a layer's two entries."""
    first = 2 if layer.has_gate else 1
    shapes = {"gate_up": (first, layer.intermediate, layer.hidden), "down": (1, layer.hidden, layer.intermediate)}
    return {entry: EntryLayout(bits.entry(entry), *shapes[entry], group_size, symmetric) for entry in ENTRIES}


def entry_bytes(
    layer: MoeLayer, entry: str, width: int, *, group_size: int, symmetric: bool, dtype: torch.dtype
) -> int:
    """Bytes of one expert in an entry at a width; `dtype` is that of the source, which width 16 keeps."""
    layout = entry_layouts(layer, LayerBits((width,), (width,)), group_size, symmetric)[entry]
    (shape,) = layout.shapes().values()
    return math.prod(shape) * (dtype.itemsize if width == STORED_WIDTH else 1)


def entry_tensor(layer: MoeLayer, entry: str, width: int) -> str:
    """Name of the tensor with the experts of one width."""
    return f"{layer.name}.{entry}.b{width}"


def bias_tensor(layer: MoeLayer, role: str) -> str:
    """Name of the tensor with the biases of all experts; role is gate, up or down."""
    return f"{layer.name}.{role}_bias"


def marker_tensor(layer: MoeLayer) -> str:
    """A one-byte tensor under the name of the layer's first parameter.

    A program that does not know the format finds a tensor of the wrong shape there and stops, where it would
    otherwise go on with random experts.
    """
    return layer.parameters()[0]


def linear_marker(linear: str) -> str:
    """The same for a model of which only linear layers are packed: under the name of the first one's weight."""
    return f"{linear}.weight"


def linear_tensor(linear: str) -> str:
    """Name of the blob of a packed linear layer."""
    return f"{linear}.packed"


def layer_specs(
    layer: MoeLayer, layouts: dict[str, EntryLayout], dtype: torch.dtype, bias_dtype: torch.dtype | None
) -> list[TensorSpec]:
    """All tensors of one packed expert layer.

    Args:
        layer: the layer.
        layouts: of its entries.
        dtype: of the source's expert weights.
        bias_dtype: of the source's expert biases, None without biases.
    """
    specs = []
    for entry, layout in layouts.items():
        for width, shape in layout.shapes().items():
            kind = dtype if width == STORED_WIDTH else torch.uint8
            specs.append(TensorSpec(entry_tensor(layer, entry, width), kind, shape))
    if bias_dtype is not None:
        specs += [
            TensorSpec(bias_tensor(layer, role), bias_dtype, (layer.experts, rows)) for role, rows, _ in layer.matrices
        ]
    # one byte would spoil the alignment of the blobs after it, hence not uint8
    specs.append(TensorSpec(marker_tensor(layer), torch.bool, (1,)))
    return specs
