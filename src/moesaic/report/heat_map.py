"""The map of experts: a row a layer, a column an expert, a colour a value.

Cells of one colour are one path, so that a map of 23,000 experts is some hundred kilobytes. `assets/page.js` draws the
same paths anew when the reader switches to another value.
"""

from __future__ import annotations

from bisect import bisect_right

from moesaic.report.expert_values import ExpertValues, short_names
from moesaic.report.numbers import number_text
from moesaic.report.svg import Element, drawing, node

_MAP_WIDTH, _MAP_HEIGHT = 620, 460  # what the cells should fill, pixels
_LARGEST, _SMALLEST = 44, 6  # side of a cell
_TEXT_FROM = 18  # side of a cell that a digit fits into
_TOP, _GAP = 40, 1
_FEW = 460  # a narrower map is shown larger than drawn


def heat_map(table: ExpertValues, label: str) -> Element:
    """Draw a table of values.

    Args:
        table: what to draw.
        label: text for those who cannot see it.
    """
    names = short_names(list(table.layers))
    wide, high = cell_size(table)
    left = max(44, 20 + 7 * max(map(len, names)))
    columns, rows = max(map(len, table.layers.values())), len(names)
    size = (left + columns * wide + 4, _TOP + rows * high + 4)
    cells = node("g", *_paths(table, left, wide, high), class_="cells")
    parts = [cells, *_labels(names, columns, left, wide, high)]
    if table.are_widths and min(wide, high) >= _TEXT_FROM:
        parts.append(_digits(table, left, wide, high))
    parts.append(node("rect", class_="cursor", x=left, y=_TOP, width=wide - _GAP, height=high - _GAP, rx=2))
    geometry = {"data_left": left, "data_top": _TOP, "data_wide": wide, "data_high": high}
    few = " few" if size[0] < _FEW else ""
    return drawing(*size, *parts, label=label, class_=f"map{few}", **geometry)


def cell_size(table: ExpertValues) -> tuple[int, int]:
    """Width and height of a cell in pixels, gap included."""
    columns, rows = max(map(len, table.layers.values())), len(table.layers)
    wide = max(_SMALLEST, min(_LARGEST, _MAP_WIDTH // columns))
    high = max(_SMALLEST + 2, min(_LARGEST, _MAP_HEIGHT // rows, wide * 2))
    return wide, high


def classes(table: ExpertValues) -> list[list[str]]:
    """The colour class of every cell: `w3` for 3 bits, `s0` to `s6` on a scale."""
    edges = table.edges()
    return [
        [f"w{value:g}" if table.are_widths else f"s{bisect_right(edges, value)}" for value in row]
        for row in table.layers.values()
    ]


def legend(table: ExpertValues) -> tuple[tuple[str, str], ...]:
    """Swatches and words: every width with the number of its experts, or every interval of the scale."""
    found = [name for row in classes(table) for name in row]
    if table.are_widths:
        widths = sorted({int(value) for value in table.all()})
        return tuple(
            (f"w{width}", f"{width} {'bit' if width == 1 else 'bits'}: {_count(found, width)}") for width in widths
        )
    values = table.all()
    borders = [min(values), *table.edges(), max(values)]
    return tuple(
        (f"s{step}", f"{number_text(borders[step], 3)} to {number_text(borders[step + 1], 3)}")
        for step in range(len(borders) - 1)
        if f"s{step}" in found
    )


def _count(found: list[str], width: int) -> str:
    number = found.count(f"w{width}")
    return f"{number:,} expert{'' if number == 1 else 's'}"


def _paths(table: ExpertValues, left: int, wide: int, high: int) -> list[Element]:
    """One path a class; neighbours of one class in a row are drawn apart by the gap where cells are large."""
    pieces: dict[str, list[str]] = {}
    for row, names in enumerate(classes(table)):
        for column, name in enumerate(names):
            x, y = left + column * wide, _TOP + row * high
            pieces.setdefault(name, []).append(f"M{x} {y}h{wide - _GAP}v{high - _GAP}h{_GAP - wide}z")
    return [node("path", class_=name, d="".join(pieces[name])) for name in sorted(pieces)]


def _labels(names: list[str], columns: int, left: int, wide: int, high: int) -> list[Element]:
    made = [
        node("text", "expert", x=left, y=12, class_="title"),
        node("text", "layer", x=left - 8, y=_TOP - 10, class_="title", text_anchor="end"),
    ]
    for column in range(0, columns, _stride(columns, wide, room=30)):
        at = left + column * wide + (wide - _GAP) / 2
        made.append(node("text", str(column), x=at, y=_TOP - 10, class_="faint", text_anchor="middle"))
    for row in range(0, len(names), _stride(len(names), high, room=14)):
        at = _TOP + row * high + (high - _GAP) / 2 + 4
        made.append(node("text", names[row], x=left - 8, y=at, class_="faint", text_anchor="end"))
    return made


def _stride(count: int, side: int, *, room: int) -> int:
    """Every how many cells a label fits."""
    return next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, count) if step * side >= room or step >= count)


def _digits(table: ExpertValues, left: int, wide: int, high: int) -> Element:
    made = [
        node("text", f"{value:g}", class_=f"cell on{value:g}", text_anchor="middle",
             x=left + column * wide + (wide - _GAP) / 2, y=_TOP + row * high + (high - _GAP) / 2 + 4)
        for row, values in enumerate(table.layers.values())
        for column, value in enumerate(values)
    ]  # fmt: skip
    return node("g", *made, class_="digits", aria_hidden="true")
