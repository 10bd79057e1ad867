"""Figures from records, as SVG files for the documentation. Same record, same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .intervals import Interval

COLOURS = ("#3366aa", "#cc5533", "#339966", "#8855aa", "#998800", "#555555", "#cc3377", "#0099aa", "#886644", "#aaaaaa")
STYLE: dict[str, Any] = {
    "svg.hashsalt": "moesaic",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.facecolor": "white",
}


@contextmanager
def panels(
    path: Path, columns: int = 1, rows: int = 1, *, width: float = 4.2, height: float = 3.2
) -> Iterator[list[Axes]]:
    """Axes to draw on, row by row; the file is written at the end, only if nothing was raised."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def curve(axes: Axes, x: Sequence[float], y: Sequence[Interval], label: str, number: int) -> None:
    """A line through means with its intervals as a band; `number` chooses the colour."""
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(x, [each["mean"] for each in y], marker="o", markersize=3, color=colour, label=label)
    axes.fill_between(
        x, [each["low"] for each in y], [each["high"] for each in y], color=colour, alpha=0.18, linewidth=0
    )


def dots(
    axes: Axes, rows: Mapping[str, Interval], number: int = 0, label: str | None = None, shift: float = 0.0
) -> None:
    """One dot with its interval a row, the first row on top; `shift` moves them so that several sets can be seen."""
    colour = COLOURS[number % len(COLOURS)]
    places = [len(rows) - 1 - at - shift for at in range(len(rows))]
    mean = [each["mean"] for each in rows.values()]
    errors = [
        [max(0.0, each["mean"] - each["low"]) for each in rows.values()],
        [max(0.0, each["high"] - each["mean"]) for each in rows.values()],
    ]
    axes.errorbar(mean, places, xerr=errors, fmt="o", markersize=4, color=colour, label=label)
    axes.set_yticks(range(len(rows)), list(reversed(list(rows))))
