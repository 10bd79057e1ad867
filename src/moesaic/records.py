"""The nouns that the stages hand to each other, each a frozen dataclass with one file form.

    Checkpoint --score--> Scores --allocate--> BitPlan --quantize--> QuantizedWeight --pack--> PackedModel
                                                                                 --evaluate--> RunRecord

`Checkpoint` and `PackedModel` are folders and live with the code that knows files (`checkpoint/`, `packing/`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moesaic.costs import CostTable as CostTable  # noqa: PLC0414  # a noun like the others
from moesaic.costs import entry_layer as entry_layer  # noqa: PLC0414
from moesaic.costs import layer_of_entry as layer_of_entry  # noqa: PLC0414
from moesaic.errors import BudgetInfeasible, CorruptFile, InvalidPlan
from moesaic.json_files import json_text as json_text  # noqa: PLC0414
from moesaic.json_files import read_json as read_json  # noqa: PLC0414
from moesaic.json_files import write_json as write_json  # noqa: PLC0414
from moesaic.stats import ExpertStats as ExpertStats  # noqa: PLC0414
from moesaic.stats import LayerStats as LayerStats  # noqa: PLC0414

if TYPE_CHECKING:  # who only reads records, such as the report, does not wait for torch
    from torch import Tensor

PACKED_WIDTHS = (1, 2, 3, 4, 8)
STORED_WIDTH = 16  # the matrix is kept as the checkpoint has it
WIDTHS = (*PACKED_WIDTHS, STORED_WIDTH)
ENTRIES = ("gate_up", "down")  # the two parts of an expert that can have widths of their own


@dataclass(frozen=True)
class ExpertWeights:
    """One expert's matrices in canonical orientation `[out, in]`, in the checkpoint's dtype.

    Attributes:
        gate: `[intermediate, hidden]`, None for experts without a gate.
        up: `[intermediate, hidden]`; the first layer of experts without a gate.
        down: `[hidden, intermediate]`.
        gate_bias, up_bias: `[intermediate]` or None.
        down_bias: `[hidden]` or None.
    """

    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def first_layer(self) -> Tensor:
        """The papers' W1: the gate projection where there is one, else up. `[intermediate, hidden]`"""
        return self.up if self.gate is None else self.gate

    def matrices(self) -> dict[str, Tensor]:
        """The matrices that exist, by role, gate before up before down."""
        named = {"gate": self.gate, "up": self.up, "down": self.down}
        return {role: matrix for role, matrix in named.items() if matrix is not None}

    def biases(self) -> dict[str, Tensor]:
        """The biases that exist, by role."""
        named = {"gate": self.gate_bias, "up": self.up_bias, "down": self.down_bias}
        return {role: bias for role, bias in named.items() if bias is not None}


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix on a stored grid: `w = (row_scale * scale_code) * (code - zero)`, see `docs/format.md`.

    Attributes:
        codes: `[rows, groups * group_size]` uint8, below `2**bits`; columns from `columns` on are padding.
        scale_codes: `[rows, groups]` uint8.
        zero_codes: `[rows, groups]` uint8, or None on a symmetric grid (zero = middle of the codes).
        row_scale: `[rows]` bfloat16, not negative.
        bits: 1, 2, 3, 4 or 8.
        group_size: 32, 64 or 128 columns.
        columns: the matrix' own number of columns.
    """

    codes: Tensor
    scale_codes: Tensor
    zero_codes: Tensor | None
    row_scale: Tensor
    bits: int
    group_size: int
    columns: int

    def __post_init__(self) -> None:
        rows, padded = self.codes.shape
        groups = padded // self.group_size
        if self.bits not in PACKED_WIDTHS:
            raise ValueError(f"bits must be one of {PACKED_WIDTHS}, got {self.bits}")
        if padded % self.group_size or not (groups - 1) * self.group_size < self.columns <= padded:
            raise ValueError(
                f"{padded} code columns do not cover {self.columns} columns in groups of {self.group_size}"
            )
        if self.scale_codes.shape != (rows, groups) or self.row_scale.shape != (rows,):
            raise ValueError("scale_codes must be [rows, groups] and row_scale [rows]")

    @property
    def symmetric(self) -> bool:
        """Whether the grid has no stored zero points."""
        return self.zero_codes is None

    def zero(self) -> Tensor:
        """The zero points in units of codes. `[rows, groups]` float32"""
        top = 2**self.bits - 1
        if self.zero_codes is None:
            return self.scale_codes.float().fill_(top / 2)
        return self.zero_codes.float() * (top / 255)

    def dequantize(self) -> Tensor:
        """The matrix that the codes stand for. `[rows, columns]` float32"""
        rows, groups = self.scale_codes.shape
        scale = self.row_scale.float()[:, None] * self.scale_codes.float()  # (N, G)
        codes = self.codes.view(rows, groups, self.group_size).float()
        weight = (codes - self.zero()[..., None]) * scale[..., None]
        flat: Tensor = weight.view(rows, -1)[:, : self.columns]
        return flat


@dataclass(frozen=True)
class Scores:
    """Importance of every expert; **larger = deserves more bits**, always.

    Attributes:
        rule: the name and knobs of the rule, for people.
        layers: layer name -> one finite number per expert.
        details: what else the rule has to say (for example which router norm it could use).
    """

    rule: str
    layers: Mapping[str, tuple[float, ...]]
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer, values in self.layers.items():
            bad = [i for i, value in enumerate(values) if not math.isfinite(value)]
            if bad:
                raise CorruptFile(
                    f"the score of expert {bad[0]} in {layer} is {values[bad[0]]} (rule {self.rule}): its weights "
                    "hold NaN or infinity; compress a sound copy of the checkpoint"
                )

    def to_json(self) -> dict[str, Any]:
        """The file form."""
        return {
            "format": "moesaic-scores/1",
            "rule": self.rule,
            "details": dict(self.details),
            "layers": {layer: list(values) for layer, values in self.layers.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scores:
        """Read the file form.

        Raises:
            CorruptFile: not a scores file.
        """
        if data.get("format") != "moesaic-scores/1" or not isinstance(data.get("layers"), dict):
            raise CorruptFile(f"not a scores file: its \"format\" is {data.get('format')!r}, not 'moesaic-scores/1'")
        try:
            layers = {layer: tuple(float(v) for v in values) for layer, values in data["layers"].items()}
        except (TypeError, ValueError):
            raise CorruptFile("scores file: a layer's scores are not a list of numbers") from None
        return cls(rule=str(data.get("rule", "?")), layers=layers, details=data.get("details", {}))


@dataclass(frozen=True)
class LayerShape:
    """What an allocator has to know of one MoE layer.

    Attributes:
        name: the experts module's path, such as `model.layers.3.mlp.experts`.
        experts: number of routed experts.
        gate_up_weights, down_weights: number of weights of one expert's two entries.
    """

    name: str
    experts: int
    gate_up_weights: int
    down_weights: int

    @property
    def expert_weights(self) -> int:
        """Number of weights of one expert."""
        return self.gate_up_weights + self.down_weights


@dataclass(frozen=True)
class Budget:
    """An average number of code bits per expert weight that a plan may not exceed (scales not counted)."""

    bits: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bits) and 0 < self.bits <= STORED_WIDTH):
            raise BudgetInfeasible(f"--bits {self.bits} is out of reach: give an average between 1 and {STORED_WIDTH}")


@dataclass(frozen=True)
class LayerBits:
    """Bits of every expert of one layer, apart for the two entries."""

    gate_up: tuple[int, ...]
    down: tuple[int, ...]

    def entry(self, name: str) -> tuple[int, ...]:
        """The widths of `"gate_up"` or `"down"`, one per expert."""
        return self.gate_up if name == "gate_up" else self.down


@dataclass(frozen=True)
class BitPlan:
    """How many bits every expert gets.

    Attributes:
        method: who made it: rule and allocator, for people.
        requested_bits: the budget asked for (average code bits), None for a plan written by hand.
        layers: layer name -> bits of its experts.
        requested: the budget asked for where it was another one: `{"bpw": …}`, stored bits per weight, or
            `{"size": …}`, bytes of the whole folder. `requested_bits` is None then.
    """

    method: str
    requested_bits: float | None
    layers: Mapping[str, LayerBits]
    requested: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, bits in self.layers.items():
            if len(bits.gate_up) != len(bits.down):
                raise InvalidPlan(f"plan, {name}: {len(bits.gate_up)} widths for gate_up but {len(bits.down)} for down")
            for expert, width in enumerate((*bits.gate_up, *bits.down)):
                if width not in WIDTHS:
                    place = expert % len(bits.gate_up)
                    raise InvalidPlan(f"plan, {name}, expert {place}: width {width} is not one of {WIDTHS}")

    def reached_bits(self, shapes: list[LayerShape]) -> float:
        """The average code bits over all expert weights, in the papers' sense (scales not counted)."""
        total = weights = 0
        for shape in shapes:
            bits = self.layers[shape.name]
            total += sum(bits.gate_up) * shape.gate_up_weights + sum(bits.down) * shape.down_weights
            weights += shape.experts * shape.expert_weights
        return total / weights

    def check(self, shapes: list[LayerShape]) -> None:
        """Make sure that the plan is for a model with these MoE layers.

        Raises:
            InvalidPlan: a layer is missing, unknown, or has another number of experts; or the budget that the
                plan carries is exceeded.
        """
        for shape in shapes:
            if shape.name not in self.layers:
                raise InvalidPlan(f"the plan has no entry for {shape.name}: it was made for another model")
            planned = len(self.layers[shape.name].gate_up)
            if planned != shape.experts:
                raise InvalidPlan(
                    f"the plan gives {planned} experts to {shape.name}, the model has {shape.experts}: "
                    "it was made for another model"
                )
        extra = set(self.layers) - {shape.name for shape in shapes}
        if extra:
            raise InvalidPlan(f"the plan names {sorted(extra)[0]}, which the model does not have")
        reached = self.reached_bits(shapes)
        if self.requested_bits is not None and reached > self.requested_bits + 1e-9:
            raise InvalidPlan(
                f"the plan reaches {reached:.4f} bits, more than its own budget of {self.requested_bits}: "
                'lower some widths, or set "requested_bits" to null'
            )

    def to_json(self, shapes: list[LayerShape] | None = None) -> dict[str, Any]:
        """The file form: one line of widths a layer, so that a person can edit it."""
        layers: dict[str, Any] = {}
        for name, bits in self.layers.items():
            if bits.gate_up == bits.down:
                layers[name] = " ".join(map(str, bits.gate_up))
            else:
                layers[name] = {entry: " ".join(map(str, bits.entry(entry))) for entry in ENTRIES}
        reached = {"reached_bits": self.reached_bits(shapes)} if shapes else {}
        head = {"format": "moesaic-plan/1", "method": self.method, "requested_bits": self.requested_bits}
        requested = {"requested": dict(self.requested)} if self.requested else {}
        return {**head, **requested, **reached, "layers": layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitPlan:
        """Read the file form (`reached_bits` and `reached` are for people and are not read back).

        Raises:
            InvalidPlan: not a plan file, or a width that is not a number.
        """
        if data.get("format") != "moesaic-plan/1" or not isinstance(data.get("layers"), dict):
            raise InvalidPlan(f"not a plan file: its \"format\" is {data.get('format')!r}, not 'moesaic-plan/1'")
        requested = data.get("requested_bits")
        number = isinstance(requested, int | float) and not isinstance(requested, bool)
        if requested is not None and not (number and math.isfinite(requested)):
            raise InvalidPlan(f'plan: "requested_bits" is {requested!r}; give a number or null')
        layers = {name: _layer_bits(name, value) for name, value in data["layers"].items()}
        others = data.get("requested", {})
        if not isinstance(others, dict) or not all(isinstance(each, int | float) for each in others.values()):
            raise InvalidPlan(f'plan: "requested" is {others!r}; give an object of numbers such as {{"bpw": 2.5}}')
        return cls(str(data.get("method", "by hand")), requested, layers, others)


def _layer_bits(name: str, value: Any) -> LayerBits:
    if isinstance(value, Mapping):
        missing = [entry for entry in ENTRIES if entry not in value]
        if missing:
            raise InvalidPlan(f'plan, {name}: no "{missing[0]}"; give both of {ENTRIES}, or one line for both')
        return LayerBits(*(_widths(name, value[entry]) for entry in ENTRIES))
    widths = _widths(name, value)
    return LayerBits(gate_up=widths, down=widths)


def _widths(name: str, value: Any) -> tuple[int, ...]:
    parts = value.split() if isinstance(value, str) else value
    try:
        widths = tuple(int(part) for part in parts)
        if any(isinstance(part, float | bool) for part in parts):
            raise ValueError
        return widths
    except (TypeError, ValueError):
        raise InvalidPlan(f"plan, {name}: {value!r} is not a line of widths such as '3 2 2 1'") from None


@dataclass(frozen=True)
class RunRecord:
    """A measured value that carries the conditions it was measured under.

    Attributes:
        name: what was measured, such as `perplexity`.
        value: the figure.
        unit: its unit, such as `tokens/s`; "" for a pure number.
        n: how many samples (tokens, items, runs) it stands on; 1 for what is counted and not sampled.
        conditions: command, model, text, window, seed, machine, versions.
        interval: its 95 % confidence interval `(low, high)`, None where there is none.
    """

    name: str
    value: float
    unit: str
    n: int
    conditions: Mapping[str, Any]
    interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The file form; `interval` only where there is one."""
        interval = {} if self.interval is None else {"interval": list(self.interval)}
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "n": self.n,
            **interval,
            "conditions": dict(self.conditions),
        }
