"""What a kernel is given: one packed expert layer, as views of the memory-mapped file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.errors import CorruptFile, UsageError
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
        ordered: the tensors in ascending order of width, those of width 16 last.
    """

    layout: EntryLayout
    tensors: Mapping[int, Tensor]
    places: tuple[int, ...] = field(init=False)
    ordered: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        shapes = self.layout.shapes()
        for width, shape in shapes.items():
            found = tuple(self.tensors[width].shape) if width in self.tensors else None
            if found != shape:
                raise CorruptFile(f"packed experts of width {width}: expected a tensor of shape {shape}, found {found}")
        places = tuple(self.layout.place(expert) for expert in range(len(self.layout.widths)))
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "ordered", tuple(self.tensors[width] for width in shapes))

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


# Between the two layers of an expert, without a gate.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


def known_activation(kind: str, *, gated: bool, alpha: float = 0.0, limit: float = 0.0) -> Activation:
    """The activation of a kind that has a name, with a function made from that name alone.

    Args:
        kind: one of `FUNCTIONS` or `"swiglu_clamped"`, gpt-oss' `(up + 1) * gate * sigmoid(alpha * gate)` with gate cut
            at `limit` and up at both sides.
        gated: whether the first layer has gate and up.
        alpha, limit: of `"swiglu_clamped"`.
    """

    def clamped(hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + 1) * gate * torch.sigmoid(alpha * gate)

    def with_gate(hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        return FUNCTIONS[kind](gate) * up

    if kind == "swiglu_clamped":
        return Activation(kind, clamped, alpha, limit)
    return Activation(kind, with_gate if gated else FUNCTIONS[kind])


@dataclass(frozen=True)
class ExpertLayer:
    """A whole packed expert layer.

    Attributes:
        gate_up: rows = intermediate, columns = hidden; 2 matrices where experts have a gate.
        down: rows = hidden, columns = intermediate.
        activation: between them.
        gate_up_bias: `[experts, matrices * intermediate]` or None.
        down_bias: `[experts, hidden]` or None.
        spec: all of the layer but its tensors and an activation without a name, as text: operators of torch take
            tensors and text, and graphs that were compiled from them outlive the process. `layer_from` reads it.
            Made from the others when it is not given.
    """

    gate_up: ExpertEntry
    down: ExpertEntry
    activation: Activation
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    spec: str = ""

    def __post_init__(self) -> None:
        if not self.spec:
            object.__setattr__(self, "spec", spec_of(self.gate_up.layout, self.down.layout, self.activation))

    @property
    def experts(self) -> int:
        """Number of routed experts."""
        return len(self.gate_up.widths)


def spec_of(gate_up: EntryLayout, down: EntryLayout, activation: Activation) -> str:
    """`ExpertLayer.spec` of a layer with these entries and this activation."""
    sizes = f"{gate_up.columns} {gate_up.rows} {gate_up.matrices} {gate_up.group_size} {int(gate_up.symmetric)}"
    function = f"{activation.kind} {activation.alpha} {activation.limit}"
    return ";".join((sizes, function, " ".join(map(str, gate_up.widths)), " ".join(map(str, down.widths))))


@functools.cache
def read_spec(spec: str) -> tuple[EntryLayout, EntryLayout, Activation]:
    """The layouts of gate_up and down, and the activation, that `ExpertLayer.spec` stands for."""
    sizes, function, first, second = (part.split() for part in spec.split(";"))
    hidden, intermediate, matrices, group_size, symmetric = map(int, sizes)
    kind, alpha, limit = function
    grid = (group_size, bool(symmetric))
    return (
        EntryLayout(tuple(map(int, first)), matrices, intermediate, hidden, *grid),
        EntryLayout(tuple(map(int, second)), 1, hidden, intermediate, *grid),
        known_activation(kind, gated=matrices == 2, alpha=float(alpha), limit=float(limit)),
    )


def layer_from(
    spec: str,
    gate_up: Sequence[Tensor],
    down: Sequence[Tensor],
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> ExpertLayer:
    """The layer of that `spec` with these tensors, those of an entry in ascending order of width.

    Raises:
        CorruptFile: the tensors are not those of the layouts.
    """
    first, second, activation = read_spec(spec)
    return ExpertLayer(
        ExpertEntry(first, dict(zip(first.shapes(), gate_up, strict=True))),
        ExpertEntry(second, dict(zip(second.shapes(), down, strict=True))),
        activation,
        gate_up_bias,
        down_bias,
    )


def check_index(top_k_index: Tensor, experts: int) -> None:
    """Refuse numbers of experts that there are not.

    Raises:
        UsageError: a number of `experts` or more.
    """
    if top_k_index.numel() and int(top_k_index.max()) >= experts:
        raise UsageError(
            f"index: there is no expert {int(top_k_index.max())} in a layer of {experts}; -1 stands for no expert"
        )


def tokens_by_expert(top_k_index: Tensor, experts: int) -> list[tuple[int, Tensor, Tensor]]:
    """Which rows each expert works on: `(expert, token rows, places in the top-k)` for every expert that has any.

    A number below 0 means that the place is empty (a dropped token, a skipped expert).

    Raises:
        UsageError: a number of `experts` or more.
    """
    check_index(top_k_index, experts)
    found = []
    for expert in torch.unique(top_k_index).tolist():
        if expert >= 0:
            token, place = torch.where(top_k_index == expert)
            found.append((expert, token, place))
    return found
