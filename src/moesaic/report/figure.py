"""What a figure is on the page: a drawing, its words, its legend, and the same numbers as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from moesaic.report.svg import Element, file_text, markup


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: unique; the stem of its file.
        title: what it shows.
        drawing: the picture.
        caption: how to read it, with conditions.
        legend: class of the swatch and words, in order.
        head, rows: the numbers, for those who cannot see the picture and for those who want them.
    """

    name: str
    title: str
    drawing: Element
    caption: str
    legend: tuple[tuple[str, str], ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def svg(self) -> Markup:
        """The picture as part of a page."""
        return markup(self.drawing)


@dataclass(frozen=True)
class Missing:
    """What stands in the place of a figure that nothing was measured for.

    Attributes:
        title: of the figure that could be here.
        reason: what is missing.
        command: what would measure it.
    """

    title: str
    reason: str
    command: str


def write_figures(figures: list[Figure], folder: Path) -> list[str]:
    """Write every figure as `NAME.svg` into the folder, which is made. Returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for figure in figures:
        path = folder / f"{figure.name}.svg"
        path.write_text(file_text(figure.drawing, figure.title), encoding="utf-8")
        names.append(path.name)
    return names
