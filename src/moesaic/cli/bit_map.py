"""A bit plan to look at: a line a layer, a digit an expert, coloured where colours are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

LARGEST = 16  # bits: kept as it was; F in the map, so that a column is one character
_STYLES = {
    1: "white on #440154",
    2: "white on #3b528b",
    3: "white on #21918c",
    4: "black on #5ec962",
    8: "black on #fde725",
    16: "black on white",
}
_Layers = Mapping[str, Mapping[str, Sequence[int]]]


def bit_map(layers: _Layers, *, width: int) -> Iterator[Text]:
    """The lines of the map: a line a layer, two where an expert's entries differ, more where it is wide.

    Args:
        layers: layer -> entry (`gate_up`, `down`) -> bits of every expert.
        width: columns of the terminal.
    """
    labels = _labels(list(layers))
    margin = max(map(len, labels.values())) + 2
    split = any(list(entries["gate_up"]) != list(entries["down"]) for entries in layers.values())
    room = max(8, width - margin - 2 - (9 if split else 0))
    for name, entries in layers.items():
        label = labels[name]
        for entry in ("gate_up", "down") if split else ("down",):
            bits = list(entries[entry])
            for start in range(0, len(bits), room):
                line = Text("  " + label.ljust(margin))
                if split:
                    line.append((entry if start == 0 else "").ljust(9), style="dim")
                for width_of in bits[start : start + room]:
                    line.append(symbol(width_of), style=_STYLES.get(width_of, ""))
                yield line
                label = ""


def legend(layers: _Layers) -> Iterator[Text]:
    """What the symbols mean and how many experts have each, a line a width.

    An expert whose entries differ counts half for each.
    """
    counts: Counter[int] = Counter()
    for entries in layers.values():
        counts.update(entries["gate_up"])
        counts.update(entries["down"])
    for width in sorted(counts):
        line = Text("  ").append(symbol(width), style=_STYLES.get(width, ""))
        what = "kept as they were" if width == LARGEST else f"{width} bits" if width > 1 else "1 bit"
        yield line.append(f"  {what}: {counts[width] / 2:g} experts")


def symbol(width: int) -> str:
    """One character for a width."""
    return "F" if width == LARGEST else str(width)


def _labels(names: list[str]) -> dict[str, str]:
    """`model.layers.3.mlp.experts` -> `layer 3`, where that tells the layers apart; else the whole names."""
    numbers = {name: [part for part in name.split(".") if part.isdigit()] for name in names}
    if all(numbers.values()):
        labels = {name: f"layer {found[0]}" for name, found in numbers.items()}
        if len(set(labels.values())) == len(names):
            return labels
    return {name: name for name in names}
