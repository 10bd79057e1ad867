"""The noun of the allocators that weigh errors: what each expert costs at each width. File form: `docs/costs.md`.

It has a file of its own for its length; import it from `moesaic.records`, where the other nouns are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moesaic.errors import CorruptFile

COSTS_FORMAT = "moesaic-costs/1"
FACTORS = ("frequency", "routing_weight")  # the papers' phi and w
_LAYER_KEYS = ("costs", "weights", *FACTORS)

_ENTRY_MARKS = ("/gate_up", "/down")  # after a layer's name: costs of that part of its experts alone

Rows = tuple[tuple[float, ...], ...]
Factors = Mapping[str, tuple[float, ...]]


def entry_layer(layer: str, entry: str) -> str:
    """The name under which a table has the costs of one entry (`"gate_up"` or `"down"`) of a layer."""
    return f"{layer}/{entry}"


def layer_of_entry(name: str) -> str:
    """The layer that a name of a table belongs to, whether it is of an entry or of the whole."""
    return next((name.removesuffix(mark) for mark in _ENTRY_MARKS if name.endswith(mark)), name)


@dataclass(frozen=True)
class CostTable:
    """What every expert costs at every width; **smaller = better**, always. Costs may be negative, but not infinite.

    Attributes:
        rule: what was measured, for people.
        bits: the widths, ascending.
        layers: layer name -> `[experts][widths]` cost.
        weights: layer name -> number of weights of one expert; empty where all layers have experts of one size.
        frequency: layer name -> phi, how often each expert was chosen; empty where the costs are finished.
        routing_weight: layer name -> w, the routing mass of each expert; empty where the costs are finished.
        details: what else is to be said of the measurement.

    Where gate_up and down have costs of their own, a layer is there twice, as `LAYER/gate_up` and `LAYER/down`.

    With `frequency` and `routing_weight` the costs are raw errors, not negative, which are still to be weighted
    (`weighted`). Both are needed only up to a factor of their own in each layer.

    Raises:
        CorruptFile: naming layer, expert and width.
    """

    rule: str
    bits: tuple[int, ...]
    layers: Mapping[str, Rows]
    weights: Mapping[str, int] = field(default_factory=dict)
    frequency: Factors = field(default_factory=dict)
    routing_weight: Factors = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        if not self.layers:
            raise CorruptFile("costs: there is no layer in them")
        for layer, rows in self.layers.items():
            _check_costs(layer, rows, self.bits)
        _check_weights(self.weights, self.layers)
        if bool(self.frequency) != bool(self.routing_weight):
            raise CorruptFile(f"costs: give both of {FACTORS}, or neither")
        for name in FACTORS:
            _check_factors(name, getattr(self, name), self.layers)
        if self.raw:
            self._check_raw()

    @property
    def per_matrix(self) -> bool:
        """Whether the costs are apart for gate_up and down."""
        return all(layer_of_entry(name) != name for name in self.layers)

    @property
    def raw(self) -> bool:
        """Whether the costs are errors that the factors still have to weight."""
        return bool(self.frequency)

    def weighted(self, alpha: float, beta: float, gamma: float) -> CostTable:
        """Finished costs `phi^alpha * w^beta * cost^gamma`, phi and w made to sum to 1 in each layer; else unchanged.

        Args:
            alpha: exponent of the frequency, not negative.
            beta: of the routing weight.
            gamma: of the error.
        """
        if not self.raw:
            return self
        layers = {
            layer: tuple(
                tuple(_power(phi, alpha) * _power(w, beta) * _power(cost, gamma) for cost in row)
                for row, phi, w in zip(
                    rows, _shares(self.frequency[layer]), _shares(self.routing_weight[layer]), strict=True
                )
            )
            for layer, rows in self.layers.items()
        }
        return replace(self, layers=layers, frequency={}, routing_weight={})

    def to_json(self) -> dict[str, Any]:
        """The file form."""
        layers: dict[str, dict[str, Any]] = {}
        for layer, rows in self.layers.items():
            layers[layer] = {"costs": [list(row) for row in rows]}
            if self.weights:
                layers[layer]["weights"] = self.weights[layer]
            for name in FACTORS if self.raw else ():
                layers[layer][name] = list(getattr(self, name)[layer])
        head = {"format": COSTS_FORMAT, "rule": self.rule, "details": dict(self.details), "bits": list(self.bits)}
        return {**head, "layers": layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostTable:
        """Read the file form.

        Raises:
            CorruptFile: not a costs file, or a value that cannot be: with layer, expert and width.
        """
        if data.get("format") != COSTS_FORMAT or not isinstance(data.get("layers"), dict):
            raise CorruptFile(f'not a costs file: its "format" is {data.get("format")!r}, not {COSTS_FORMAT!r}')
        bits, details, parts = data.get("bits"), data.get("details", {}), data["layers"]
        if not isinstance(bits, list) or not isinstance(details, dict):
            raise CorruptFile('costs: "bits" has to be a list of widths such as [1, 2, 3], "details" an object')
        for layer, part in parts.items():
            _check_layer_form(layer, part)
        return cls(
            rule=str(data.get("rule", "?")),
            bits=tuple(bits),
            layers={layer: tuple(tuple(row) for row in part["costs"]) for layer, part in parts.items()},
            weights={layer: part["weights"] for layer, part in parts.items() if "weights" in part},
            frequency={layer: tuple(part["frequency"]) for layer, part in parts.items() if "frequency" in part},
            routing_weight={layer: tuple(p["routing_weight"]) for layer, p in parts.items() if "routing_weight" in p},
            details=details,
        )

    def _check_raw(self) -> None:
        for layer, rows in self.layers.items():
            for expert, row in enumerate(rows):
                for width, cost in zip(self.bits, row, strict=True):
                    if cost < 0:
                        raise CorruptFile(
                            f"costs, {layer}, expert {expert}, {width} bits: {cost} is negative, and costs that come "
                            f"with {' and '.join(FACTORS)} are errors"
                        )


def _number(value: Any) -> bool:
    """Whether it is a finite number, and one that a double can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_bits(bits: tuple[int, ...]) -> None:
    if not bits or not all(_whole(width) and 1 <= width <= 16 for width in bits):
        raise CorruptFile(f"costs: the widths are {list(bits)}; give whole numbers of bits from 1 to 16")
    if list(bits) != sorted(set(bits)):
        raise CorruptFile(f"costs: the widths {list(bits)} are not ascending")


def _check_costs(layer: str, rows: Rows, bits: tuple[int, ...]) -> None:
    if not rows:
        raise CorruptFile(f"costs, {layer}: there is no expert in it")
    for expert, row in enumerate(rows):
        if len(row) != len(bits):
            raise CorruptFile(
                f"costs, {layer}, expert {expert}: {len(row)} costs for {len(bits)} widths, {', '.join(map(str, bits))}"
            )
        for width, cost in zip(bits, row, strict=True):
            if not _number(cost):
                raise CorruptFile(f"costs, {layer}, expert {expert}, {width} bits: {cost!r} is not a finite number")


def _check_weights(weights: Mapping[str, int], layers: Mapping[str, Rows]) -> None:
    for layer in layers if weights else ():
        if layer not in weights:
            raise CorruptFile(f'costs, {layer}: no "weights", which other layers have; give it for all or for none')
        if not _whole(weights[layer]) or weights[layer] < 1:
            raise CorruptFile(
                f'costs, {layer}: "weights" is {weights[layer]!r}; give the number of weights of one expert'
            )


def _check_factors(name: str, factors: Factors, layers: Mapping[str, Rows]) -> None:
    for layer, rows in layers.items() if factors else ():
        values = factors.get(layer, ())
        if len(values) != len(rows):
            raise CorruptFile(f'costs, {layer}: {len(values)} values of "{name}" for {len(rows)} experts')
        for expert, value in enumerate(values):
            if not _number(value) or value < 0:
                raise CorruptFile(
                    f'costs, {layer}, expert {expert}: "{name}" is {value!r}; give a finite number from 0 up'
                )


def _check_layer_form(layer: str, part: Any) -> None:
    """The types of one layer of a file, so far as the constructor takes them for granted."""
    if not isinstance(part, dict):
        raise CorruptFile(f'costs, {layer}: {part!r:.40} is not an object with "costs"')
    unknown = sorted(set(part) - set(_LAYER_KEYS))
    if unknown or "costs" not in part:
        what = f'unknown key "{unknown[0]}"' if unknown else 'no "costs"'
        raise CorruptFile(f"costs, {layer}: {what}; a layer has {', '.join(_LAYER_KEYS)}")
    for name in ("costs", *FACTORS):
        if not isinstance(part.get(name, []), list):
            raise CorruptFile(f'costs, {layer}: "{name}" is {part[name]!r:.40}, not a list with one entry an expert')
    for expert, row in enumerate(part["costs"]):
        if not isinstance(row, list):
            raise CorruptFile(f"costs, {layer}, expert {expert}: {row!r:.40} is not a list with one cost a width")


def _shares(values: tuple[float, ...]) -> list[float]:
    """The values over their sum; unchanged where all are zero."""
    top = max(values)
    if top == 0:
        return list(values)
    total = math.fsum(value / top for value in values)  # at least 1, and finite
    return [value / top / total for value in values]


def _power(base: float, exponent: float) -> float:
    """`base ** exponent`, infinite where that is too large for a double (and then refused with its place)."""
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf
