"""Everything that is known of every expert, as named tables of numbers: bits, scores, statistics, costs.

These are what the heat map can show and what the scatter plots are drawn from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesaic.costs import COSTS_FORMAT, CostTable, layer_of_entry
from moesaic.records import Scores
from moesaic.report.numbers import rounded
from moesaic.report.sources import Material, Run, Statistics

BITS, SCORES, STATISTICS, COSTS = "Bit plan", "Scores", "Calibration", "Costs"  # the groups of the switch
STEPS = 7  # colours of a scale of numbers

Values = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class ExpertValues:
    """One number for every expert of every layer.

    Attributes:
        key: short and unique within a run, such as `max_var`.
        name: for people.
        unit: for people; "" for a pure number.
        group: under which heading of the switch it stands.
        about: one sentence: what it is, and which direction means what.
        layers: layer name -> one value an expert, four significant digits.
    """

    key: str
    name: str
    unit: str
    group: str
    about: str
    layers: Values

    @property
    def are_widths(self) -> bool:
        """Whether the values are bit-widths, which have colours of their own."""
        return self.group == BITS

    def all(self) -> list[float]:
        """All values of all layers."""
        return [value for row in self.layers.values() for value in row]

    @property
    def logarithmic(self) -> bool:
        """Whether a logarithmic scale shows more: all above zero, and the largest 50 times the smallest."""
        values = self.all()
        return min(values) > 0 and max(values) >= 50 * min(values)

    def edges(self) -> list[float]:
        """The `STEPS - 1` values at which the colour changes, ascending."""
        values = self.all()
        low, high = min(values), max(values)
        if self.logarithmic:
            return [rounded(low * (high / low) ** (step / STEPS)) for step in range(1, STEPS)]
        return [rounded(low + (high - low) * step / STEPS) for step in range(1, STEPS)]


def expert_values(run: Run, material: Material) -> list[ExpertValues]:
    """All tables for a run: its own, and those of the files that fit its layers. The first ones are its bits.

    A table that fits in name and in values one that is there already is left out.
    """
    found: dict[str, ExpertValues] = {}
    for table in _candidates(run, material):
        if {name: len(row) for name, row in table.layers.items()} == run.experts():
            found.setdefault(table.key, table)
    return list(found.values())


def _candidates(run: Run, material: Material) -> Iterator[ExpertValues]:
    if run.plan is None:
        return
    yield from _bits(run)
    yield from _observed(run.manifest.get("observed") or {})
    own = run.manifest.get("scores") or {}
    is_costs = own.get("format") == COSTS_FORMAT
    for scores in [*([Scores.from_json(own)] if own and not is_costs else []), *material.scores]:
        yield from _scores(scores)
    for statistics in material.statistics:
        yield from _statistics(statistics)
    for costs in [*([CostTable.from_json(own)] if is_costs else []), *material.costs]:
        yield from _costs(costs)


def _costs(costs: CostTable) -> Iterator[ExpertValues]:
    """One table a width; where entries have costs of their own, their sum."""
    layers: dict[str, np.ndarray] = {}
    for name, rows in costs.layers.items():
        layer, values = layer_of_entry(name), np.array(rows, dtype=float)
        layers[layer] = layers[layer] + values if layer in layers else values
    for place, width in enumerate(costs.bits):
        yield _table(
            f"cost:{costs.rule}:{width}",
            f"Cost at {width} {_bits_word(width)}",
            "",
            COSTS,
            f"What the expert loses at this width ({costs.rule}); smaller is better.",
            {layer: rows[:, place] for layer, rows in layers.items()},
        )


def _bits(run: Run) -> Iterator[ExpertValues]:
    assert run.plan is not None
    layers = run.plan.layers
    about = "Width of the codes of the expert's weights; scales are not counted."
    if all(bits.gate_up == bits.down for bits in layers.values()):
        yield _table("bits", "Bits", "bits", BITS, about, {name: bits.gate_up for name, bits in layers.items()})
        return
    for entry, words in (("gate_up", "gate and up"), ("down", "down")):
        widths = {name: bits.entry(entry) for name, bits in layers.items()}
        yield _table(f"bits_{entry}", f"Bits of {words}", "bits", BITS, about, widths)


def _observed(observed: Mapping[str, Any]) -> Iterator[ExpertValues]:
    """What `compress` notes of every expert, whatever rule was used."""
    final, initial = observed.get("router_norm"), observed.get("router_norm_initial")
    if final and initial:
        change = {name: np.subtract(final[name], initial[name]) for name in final if name in initial}
        yield _router_norm(change, "change")
    if final:
        yield _router_norm(final, "final")
    if observed.get("max_var"):
        yield _max_var(observed["max_var"])


def _router_norm(layers: Mapping[str, Any], form: str) -> ExpertValues:
    if form == "change":
        about = "By how much training changed the length of the router's vector; the paper gives small ones more bits."
        return _table("router_norm_change", "Router norm change", "", SCORES, about, layers)
    about = "Length of the router's vector after training; stands in for its change where that is not known."
    return _table("router_norm", "Router norm", "", SCORES, about, layers)


def _max_var(layers: Mapping[str, Any]) -> ExpertValues:
    about = "Largest variance of a row of the expert's first layer; a wide row has a coarse grid."
    return _table("max_var", "MaxVar", "", SCORES, about, layers)


def _scores(scores: Scores) -> Iterator[ExpertValues]:
    """A rule's scores and those of its parts; router norm and MaxVar by themselves as in their papers."""
    parts = scores.details.get("parts")
    named = {**(parts if isinstance(parts, dict) else {}), scores.rule: scores.layers}
    for rule, layers in named.items():
        if rule == "router_norm":
            form = "change" if str(scores.details.get("router_norm_form", "")).startswith("change") else "final"
            yield _router_norm({name: np.negative(row) for name, row in layers.items()}, form)
        elif rule == "max_var":
            yield _max_var(layers)
        else:
            yield _table(f"score:{rule}", f"Score: {rule}", "", SCORES, "The rule's score; larger = more bits.", layers)


_ROLES = {  # role in the file -> name, what it is; all divided by the layer's tokens
    "count": ("Routing frequency", "Share of the calibration tokens that the router sent to the expert."),
    "mass": ("Routing weight", "Routing weight given to the expert, as applied; mean over the layer's tokens."),
    "mass_before": ("Routing weight before normalising", "Softmax weight of the expert; mean over the layer's tokens."),
}
_MOMENTS = {
    "gate_up_moment": ("Input strength", "Mean square of the expert's inputs over its tokens."),
    "down_moment": ("Inner strength", "Mean square of the inputs of the expert's down matrix over its tokens."),
}
_ERRORS = {
    "weight_error": ("Weight error", "Squared norm of what rounding changes in the expert's weights."),
    "output_error": ("Output error", "Norm of the change of the layer's output when this expert alone is rounded."),
    "fisher": ("Fisher error", "Squared change of the output, weighted by the gradient of the loss."),
}


def _statistics(statistics: Statistics) -> Iterator[ExpertValues]:
    for role, (name, about) in _ROLES.items():
        shares = _each(statistics, role, lambda array, tokens: array / max(tokens, 1))
        unit = "share of tokens" if role == "count" else ""
        yield _table("frequency" if role == "count" else role, name, unit, STATISTICS, about, shares)
    for role, (name, about) in _MOMENTS.items():
        means = _each(statistics, role, lambda array, _: array.mean(axis=1))
        yield _table(role, name, "", STATISTICS, about, means)
    for role, (name, about) in _ERRORS.items():
        for place, width in enumerate(statistics.bits):
            rows = _each(statistics, role, lambda array, _, at=place: array[:, at].reshape(len(array), -1).sum(axis=1))
            yield _table(f"{role}:{width}", f"{name} at {width} {_bits_word(width)}", "", STATISTICS, about, rows)


def _each(statistics: Statistics, role: str, function: Any) -> dict[str, Any]:
    return {
        layer: function(arrays[role], statistics.tokens[layer])
        for layer, arrays in statistics.arrays.items()
        if role in arrays
    }


def _table(  # noqa: PLR0917  # the fields in their order
    key: str, name: str, unit: str, group: str, about: str, layers: Mapping[str, Any]
) -> ExpertValues:
    rows = {layer: tuple(rounded(float(value)) for value in row) for layer, row in layers.items()}
    return ExpertValues(key, name, unit, group, about, rows)


def _bits_word(width: int) -> str:
    return "bit" if width == 1 else "bits"


def short_names(layers: list[str]) -> list[str]:
    """Layer names without what they all share: `model.layers.3.mlp.experts` -> `3`; `encoder.3` where needed."""
    parts = [name.split(".") for name in layers]
    if len(parts) == 1:
        return [next((part for part in parts[0] if part.isdigit()), layers[0])]
    if len({len(each) for each in parts}) != 1:
        return list(layers)
    differing = [place for place in range(len(parts[0])) if len({each[place] for each in parts}) > 1]
    return [".".join(each[place] for place in differing) for each in parts]
