"""Routing agreement per layer: how often the compressed model's router chooses as the full-precision one does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moesaic.report.axes import across, frame, upward
from moesaic.report.expert_values import short_names
from moesaic.report.figure import Figure, Missing
from moesaic.report.numbers import share_text
from moesaic.report.sources import Material, Measurement
from moesaic.report.svg import Element, drawing, node
from moesaic.report.trade_off import place_class

NAME = "layer_routing_same_set"


def agreement(material: Material, numbers: Mapping[str, int], command: str) -> Figure | Missing:
    """Share of tokens whose set of experts is the full-precision model's, layer by layer, a line a run.

    Args:
        material: the runs.
        numbers: label of a run -> its number.
        command: what would measure it.
    """
    title = "Routing agreement per layer"
    found = {run.label: each for run in material.runs if (each := by_layer(run.measurements))}
    if not found:
        return Missing(title, "Which experts the compressed model chooses was not compared.", command)
    layers = list(dict.fromkeys(layer for each in found.values() for layer in each))
    return Figure(
        name="routing-agreement",
        title=title,
        drawing=_drawing(found, layers, numbers),
        caption="Share of tokens whose set of experts is the same as in full precision. Higher is better.",
        legend=tuple((f"r{place_class(numbers[label])}", f"{numbers[label]} {label}") for label in found),
        head=("layer", *found),
        rows=tuple((layer, *(_cell(each.get(layer)) for each in found.values())) for layer in layers),
    )


def by_layer(measurements: tuple[Measurement, ...]) -> dict[str, Measurement]:
    """Layer -> its agreement; of several settings the one with the most samples."""
    found: dict[str, Measurement] = {}
    for each in measurements:
        if each.name == NAME and each.layer is not None:
            known = found.get(each.layer)
            if known is None or each.n >= known.n:
                found[each.layer] = each
    return found


def _cell(measured: Measurement | None) -> str:
    return "–" if measured is None else share_text(measured.value)


def _drawing(found: dict[str, dict[str, Measurement]], layers: list[str], numbers: Mapping[str, int]) -> Element:
    shares = [100 * each.value for run in found.values() for each in run.values()]
    x = replace(across([float(place) for place in range(max(len(layers), 2))]), whole=True)
    y = upward([*shares, 100.0])
    parts = frame(x, y, "layer, first to last", "same experts (% of tokens)")
    names = dict(zip(layers, short_names(layers), strict=True))
    for label, run in found.items():
        colour = place_class(numbers[label])
        points = [(x(place), y(100 * run[layer].value), layer) for place, layer in enumerate(layers) if layer in run]
        parts.append(node("path", class_=f"line r{colour}", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b, _ in points)))
        for a, b, layer in points:
            words = f"{label}, layer {names[layer]}: {share_text(run[layer].value)}"
            parts.append(node("circle", class_=f"mark r{colour} point", cx=a, cy=b, r=4, data_tip=words))
    label = f"Routing agreement of {len(found)} runs in {len(layers)} layers. The table below has the numbers."
    return drawing(400, 300, *parts, label=label, class_="chart", tabindex=0)
