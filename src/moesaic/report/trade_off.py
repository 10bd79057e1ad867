"""Size against quality for all runs, with the curve of the uniform ones and confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping

from moesaic.report.axes import LEFT, RIGHT, WIDTH, Scale, across, frame, upward
from moesaic.report.comparison import (
    Compared,
    compared,
    folder_bytes,
    packed_runs,
    reference_perplexity,
    setting_text,
    value_text,
)
from moesaic.report.figure import Figure, Missing
from moesaic.report.numbers import number_text, size_text
from moesaic.report.sources import Material, Measurement, Run
from moesaic.report.svg import Element, drawing, node

MEASURES = {"perplexity": ("Perplexity", ""), "kl": ("KL divergence", "nats a token")}


def trade_off(material: Material, name: str, numbers: Mapping[str, int], command: str) -> Figure | Missing:
    """Folder size against `perplexity` or `kl`.

    Args:
        material: the runs.
        name: which measure.
        numbers: label of a run -> the number on its mark.
        command: what would measure it.
    """
    title, unit = MEASURES[name]
    heading = f"Size against {title if title[:2].isupper() else title.lower()}"
    runs = packed_runs(material)
    found = compared(name, runs)
    if found is None:
        return Missing(heading, f"{title} was not measured for any of these models.", command)
    reference = reference_perplexity(material, found.setting) if name == "perplexity" else None
    shown = [run for run in runs if run.label in found.values]
    left_out = len(runs) - len(shown)
    caption = f"{setting_text(found.setting)}. Lower is better. Whiskers: 95 % intervals. Line: uniform plans."
    if left_out:
        caption += f" {left_out} of {len(runs)} runs were not measured under this setting."
    return Figure(
        name=f"size-{name}",
        title=heading,
        drawing=_drawing(shown, found, reference, numbers, f"{title} ({unit})" if unit else title),
        caption=caption,
        legend=tuple((f"r{place_class(numbers[run.label])}", f"{numbers[run.label]} {run.label}") for run in shown),
        head=("run", "folder", title + (f", {unit}" if unit else "")),
        rows=tuple(
            (run.label, size_text(folder_bytes(run) or 0), value_text(found.values[run.label])) for run in shown
        ),
    )


def place_class(number: int) -> int:
    """Colour of a run: there are eight, taken in turns."""
    return (number - 1) % 8


def _drawing(
    runs: list[Run], found: Compared, reference: Measurement | None, numbers: Mapping[str, int], y_title: str
) -> Element:
    measured = [found.values[run.label] for run in runs]
    values = [bound for each in measured for bound in (each.value, each.low, each.high) if bound is not None]
    values += [reference.value] if reference else []
    y = upward(values, zero=found.name == "kl", log=min(values) > 0 and max(values) > 20 * min(values))
    sizes = [(folder_bytes(run) or 0) / 1e6 for run in runs]
    unit, factor = ("GB", 1e-3) if max(sizes) >= 1000 else ("MB", 1.0)
    x = across([size * factor for size in sizes])
    points = {run.label: (x(size * factor), run) for run, size in zip(runs, sizes, strict=True)}
    parts = frame(x, y, f"size of the folder ({unit})", _titled(y_title, log=y.log))
    line, words = _reference(y, reference) if reference is not None else ([], [])
    parts += line
    uniform = sorted((at, y(found.values[run.label].value)) for at, run in points.values() if run.uniform)
    if len(uniform) > 1:
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in uniform)
        parts.append(node("path", class_="line uniform", d=f"M{path}"))
    for at, run in points.values():
        parts += _whisker(at, y, found.values[run.label], place_class(numbers[run.label]))
    parts += [_mark(at, y, found.values[run.label], run, numbers[run.label]) for at, run in points.values()]
    parts += words
    label = f"{len(runs)} runs: {y_title} against the size of the folder. The table below has the numbers."
    return drawing(400, 300, *parts, label=label, class_="chart")


def _titled(title: str, *, log: bool) -> str:
    """`KL divergence (nats a token)` -> `KL divergence (nats a token, log scale)`"""
    if not log:
        return title
    return f"{title[:-1]}, log scale)" if title.endswith(")") else f"{title} (log scale)"


def _reference(y: Scale, reference: Measurement) -> tuple[list[Element], list[Element]]:
    """The line, which lies under the marks, and its words, which lie over them."""
    at = y(reference.value)
    text = f"full precision {number_text(reference.value)}"
    line = node("line", class_="reference", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at)
    return [line], [node("text", text, class_="halo", x=LEFT + 6, y=at + 15)]


def _whisker(at: float, y: Scale, measured: Measurement, colour: int) -> list[Element]:
    if measured.low is None or measured.high is None or measured.low == measured.high:
        return []
    top, bottom = y(measured.high), y(max(measured.low, y.low))
    path = f"M{at - 4:.1f} {top:.1f}h8M{at:.1f} {top:.1f}V{bottom:.1f}M{at - 4:.1f} {bottom:.1f}h8"
    return [node("path", class_=f"whisker r{colour}", d=path)]


def _mark(at: float, y: Scale, measured: Measurement, run: Run, number: int) -> Element:
    words = f"{run.label}: {value_text(measured)}, {size_text(folder_bytes(run) or 0)}"
    return node(
        "g",
        node("circle", class_=f"mark r{place_class(number)}", cx=at, cy=y(measured.value), r=8),
        node("text", str(number), class_="mark-text", x=at, y=y(measured.value) + 3.5, text_anchor="middle"),
        class_="point",
        tabindex=0,
        role="img",
        aria_label=words,
        data_tip=words,
    )
