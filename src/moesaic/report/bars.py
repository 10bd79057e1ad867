"""Speed and memory: a bar a run for each measure."""

from __future__ import annotations

from collections.abc import Mapping

from moesaic.report.comparison import Compared, compared
from moesaic.report.figure import Figure
from moesaic.report.numbers import number_text, size_text
from moesaic.report.sources import Material, Measurement
from moesaic.report.svg import Element, drawing, node
from moesaic.report.trade_off import place_class

MEASURES = {
    "decode_tokens_per_second": ("Decoding speed", "Tokens generated one by one. Longer bars are better."),
    "prefill_tokens_per_second": ("Reading speed", "Tokens of a prompt. Longer bars are better."),
    "peak_memory_bytes": ("Peak memory", "Of the process, libraries included. Shorter bars are better."),
    "load_seconds": ("Loading time", "Until the model is ready. Shorter bars are better."),
}
_ROW, _LABEL = 30, 120


def bars(material: Material, numbers: Mapping[str, int]) -> list[Figure]:
    """A figure for each of `MEASURES` that was measured for any run."""
    found = [(name, compared(name, material.runs)) for name in MEASURES]
    return [_figure(each, numbers) for _, each in found if each is not None]


def _figure(found: Compared, numbers: Mapping[str, int]) -> Figure:
    title, caption = MEASURES[found.name]
    conditions = {_conditions(each) for each in found.values.values()}
    where = "; ".join(sorted(conditions)) if len(conditions) < 3 else "several machines: see the conditions of each run"
    return Figure(
        name=found.name.replace("_", "-"),
        title=title,
        drawing=_drawing(found, numbers, title),
        caption=f"{caption} Measured on {where}.",
        head=("run", title),
        rows=tuple((label, _text(each)) for label, each in found.values.items()),
    )


def _conditions(measured: Measurement) -> str:
    known = measured.conditions
    threads = known.get("threads")
    words = [str(known.get("machine", "an unknown machine"))]
    words += [f"{threads} thread{'' if threads == 1 else 's'}"] if threads else []
    words += [f"{known['backend']} kernels"] if known.get("backend") else []
    return ", ".join(words)


def _text(measured: Measurement) -> str:
    if measured.unit == "bytes":
        return size_text(measured.value)
    return f"{number_text(measured.value, 3)} {measured.unit}"


def _drawing(found: Compared, numbers: Mapping[str, int], title: str) -> Element:
    largest = max(each.value for each in found.values.values()) or 1.0
    room = 400 - _LABEL - 112
    parts = []
    for row, (label, each) in enumerate(found.values.items()):
        top, long = row * _ROW + 4, max(1.0, each.value / largest * room)
        shown = f"{numbers[label]} {label}"
        shown = shown if len(shown) <= 17 else shown[:16] + "…"
        parts += [
            node("text", shown, x=_LABEL - 8, y=top + 15, text_anchor="end"),
            node(
                "rect",
                class_=f"length r{place_class(numbers[label])}",
                x=_LABEL,
                y=top,
                width=long,
                height=_ROW - 8,
                rx=3,
            ),
            node("text", _text(each), class_="title", x=_LABEL + long + 7, y=top + 15),
        ]
    label = f"{title}: " + "; ".join(f"{name} {_text(each)}" for name, each in found.values.items())
    return drawing(400, len(found.values) * _ROW + 4, *parts, label=label, class_="chart")
