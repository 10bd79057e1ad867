"""What a kernel is given: one packed expert layer, as views of the memory-mapped file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moesaic.errors import CorruptFile
from moesaic.packing.layout import EntryLayout, MatrixLayout
from moesaic.records import STORED_WIDTH


@dataclass(frozen=True)
class ExpertEntry:
    """One entry (`gate_up` or `down`) of all experts of a layer.

    Attributes:
        layout: widths and shapes.
        tensors: width -> the experts of that width in ascending order, `[n, bytes]` uint8; for width 16
            `[n, matrices * rows, columns]` in a float dtype.
        places: every expert's row in the tensor of its width.
    """

    layout: EntryLayout
    tensors: Mapping[int, Tensor]
    places: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        places = tuple(self.layout.place(expert) for expert in range(len(self.layout.widths)))
        object.__setattr__(self, "places", places)
        for width, shape in self.layout.shapes().items():
            found = tuple(self.tensors[width].shape) if width in self.tensors else None
            if found != shape:
                raise CorruptFile(f"packed experts of width {width}: expected a tensor of shape {shape}, found {found}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of every expert."""
        return self.layout.widths

    @property
    def matrices(self) -> int:
        """2 for gate and up, else 1."""
        return self.layout.matrices

    def stored(self, expert: int) -> Tensor:
        """The `[matrices * rows, columns]` matrix of an expert of width 16."""
        return self.tensors[STORED_WIDTH][self.places[expert]]

    def blob(self, expert: int, matrix: int) -> tuple[Tensor, MatrixLayout]:
        """The blob of one packed matrix of an expert, a view of the file, and its layout."""
        width = self.widths[expert]
        layout = self.layout.matrix(width)
        start = matrix * layout.total_bytes
        return self.tensors[width][self.places[expert], start : start + layout.total_bytes], layout


@dataclass(frozen=True)
class Activation:
    """What happens between the two layers of an expert.

    Attributes:
        kind: `"silu"`, `"gelu"`, `"gelu_tanh"`, `"relu"`, `"swiglu_clamped"` (gpt-oss) when native code may do it;
            `"other"` when only `function` knows.
        function: `[tokens, matrices * intermediate]` (gate, then up) -> `[tokens, intermediate]`.
        alpha, limit: parameters of `"swiglu_clamped"`.
    """

    kind: str
    function: Callable[[Tensor], Tensor]
    alpha: float = 0.0
    limit: float = 0.0


@dataclass(frozen=True)
class ExpertLayer:
    """A whole packed expert layer.

    Attributes:
        gate_up: rows = intermediate, columns = hidden; 2 matrices where experts have a gate.
        down: rows = hidden, columns = intermediate.
        activation: between them.
        gate_up_bias: `[experts, matrices * intermediate]` or None.
        down_bias: `[experts, hidden]` or None.
    """

    gate_up: ExpertEntry
    down: ExpertEntry
    activation: Activation
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def experts(self) -> int:
        """Number of routed experts."""
        return len(self.gate_up.widths)


def tokens_by_expert(top_k_index: Tensor, experts: int) -> list[tuple[int, Tensor, Tensor]]:
    """Which rows each expert works on: `(expert, token rows, places in the top-k)` for every expert that has any.

    Indices outside `0 … experts - 1` mean that the place is empty (a dropped token, a skipped expert).
    """
    found = []
    for expert in torch.unique(top_k_index).tolist():
        if 0 <= expert < experts:
            token, place = torch.where(top_k_index == expert)
            found.append((expert, token, place))
    return found
