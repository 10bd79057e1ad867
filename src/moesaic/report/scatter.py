"""One dot an expert: one value against another, coloured by bits.

Dots of one width are one path of points with round ends, which keeps a plot of 23,000 experts small.
"""

from __future__ import annotations

from moesaic.report.axes import Scale, across, frame, upward
from moesaic.report.expert_values import ExpertValues
from moesaic.report.svg import Element, drawing, node


def scatter(x: ExpertValues, y: ExpertValues, bits: ExpertValues, label: str) -> Element:
    """Draw `y` against `x`.

    Args:
        x, y: what the axes show; of the same layers as `bits`.
        bits: the widths that give the colours.
        label: text for those who cannot see it.
    """
    across_, upward_ = across(x.all(), log=x.logarithmic), upward(y.all(), log=y.logarithmic)
    pieces: dict[int, list[str]] = {}
    for layer, widths in bits.layers.items():
        for width, a, b in zip(widths, x.layers[layer], y.layers[layer], strict=True):
            pieces.setdefault(int(width), []).append(f"M{across_(a):.4g} {upward_(b):.4g}h0")
    dots = [node("path", class_=f"dots w{width}", d="".join(pieces[width])) for width in sorted(pieces)]
    ring = node("circle", class_="ring", r=7)
    parts = [*frame(across_, upward_, _title(x), _title(y)), *dots, ring]
    scales = {**_data("x", x, across_), **_data("y", y, upward_)}
    return drawing(400, 300, *parts, label=label, class_="scatter", **scales)


def _title(table: ExpertValues) -> str:
    words = [*([table.unit] if table.unit else []), *(["log scale"] if table.logarithmic else [])]
    return f"{table.name} ({', '.join(words)})" if words else table.name


def _data(axis: str, table: ExpertValues, scale: Scale) -> dict[str, object]:
    """What the page needs to find a dot again: the table, and the scale as `low high start end log`."""
    numbers = f"{scale.low!r} {scale.high!r} {scale.start:g} {scale.end:g} {int(scale.log)}"
    return {f"data_{axis}": table.key, f"data_{axis}scale": numbers}
