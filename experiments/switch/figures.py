"""Figures from the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.figures import COLOURS, dots, panels
from matplotlib.axes import Axes

from .rules import BASES, OTHERS, RANDOM, UNIFORM, WITH_MAX_VAR

Row = dict[str, Any]
LABELS = {"rouge2": "ROUGE-2, %", "loss": "loss, nats a token"}
SHOWN = (*BASES, "router-norm change, reversed", RANDOM)


def draw(record: Row, folder: Path) -> None:
    """Write all figures to `folder`."""
    tables = list(dict.fromkeys(row["table"] for row in record["table"]))
    _curves(record, tables, folder / "switch_table.svg")
    _against_random(record, tables, folder / "switch_against_random.svg")
    _correlations(record, folder / "switch_correlations.svg")
    _experts(record, folder / "switch_experts.svg")


def _curves(record: Row, tables: list[str], path: Path) -> None:
    """ROUGE-2 and loss over the average width, a line a rule; all lines end in uniform plans."""
    with panels(path, columns=2, rows=len(tables), width=4.6) as axes:
        for at, (table, metric) in enumerate((t, m) for t in tables for m in LABELS):
            rows = [row for row in record["table"] if row["table"] == table]
            ends = [row for row in rows if row["rule"] == UNIFORM]
            for number, rule in enumerate(SHOWN):
                line = sorted([*ends, *(row for row in rows if row["rule"] == rule)], key=lambda row: row["bits"])
                means = [row[metric]["items"]["mean"] for row in line]  # intervals: see the differences, drawn apart
                axes[at].plot(
                    [row["bits"] for row in line], means, "o-", markersize=3, color=COLOURS[number], label=rule
                )
            axes[at].set(xlabel="average bits of expert weights", ylabel=LABELS[metric], title=table)
        axes[0].legend(fontsize=6)


def _against_random(record: Row, tables: list[str], path: Path) -> None:
    """What each rule gains over random allocations of the same widths, paired by sentence."""
    rules = [*_with_max_var(record), *OTHERS]
    with panels(path, columns=2, rows=len(tables), width=5.2, height=3.9) as axes:
        for at, (table, metric) in enumerate((t, m) for t in tables for m in LABELS):
            mixed = [row for row in record["table"] if row["table"] == table and "over_random" in row]
            widths = sorted({row["bits"] for row in mixed})
            for number, bits in enumerate(widths):
                found = {row["rule"]: row["over_random"][metric]["items"] for row in mixed if row["bits"] == bits}
                shift = (number - (len(widths) - 1) / 2) * 0.15
                dots(axes[at], {rule: found[rule] for rule in rules}, number, f"{bits:g} bits", shift)
            axes[at].axvline(0, color="#555555", linewidth=0.8)
            better = "right is better" if metric == "rouge2" else "left is better"
            axes[at].set(xlabel=f"{LABELS[metric]}, less random's ({better})", title=table)
            if at % 2:
                axes[at].set_yticklabels([])
                axes[at].legend(fontsize=6)  # the averages differ from table to table, and so do the colours


def _with_max_var(record: Row) -> list[str]:
    """The paper's rules; those with MaxVar only where it moved an expert of any model, else they are the same."""
    moved = {name for lifted in record["lifted"].values() for name, number in lifted.items() if number}
    return [name + end for name in BASES for end in ("", WITH_MAX_VAR) if not end or name + end in moved]


def _correlations(record: Row, path: Path) -> None:
    """Mean rank correlation with its interval, and one faint dot a layer and model."""
    rows = record["correlations"]
    with panels(path, width=6.4, height=0.28 * len(rows) + 0.8) as axes:
        names = [f"{row['of']} / {row['with']}" for row in rows]
        for at, row in enumerate(rows):
            points = [each["mean"] for each in row["each"]]
            axes[0].plot(points, [len(rows) - 1 - at] * len(points), "o", markersize=3, alpha=0.3, color=COLOURS[5])
        dots(axes[0], {name: row["layers"] for name, row in zip(names, rows, strict=True)})
        axes[0].axvline(0, color="#555555", linewidth=0.8)
        axes[0].set(xlabel="Spearman's rank correlation within a layer", xlim=(-1.05, 1.05))


def _experts(record: Row, path: Path) -> None:
    """Every expert of the first model: its share of the tokens, and what rounding it alone costs, by norm change."""
    seed = min(record["experts"], key=int)
    values = record["experts"][seed]
    with panels(path, columns=2) as axes:
        _scatter(axes[0], values, "frequency", "share of the tokens")
        _scatter(axes[1], values, "rise", "rise of loss at one bit alone, nats a token")
        axes[1].axhline(0, color="#555555", linewidth=0.8)
        axes[1].set_ylim(top=0.1)
        axes[1].set_yscale("symlog", linthresh=1e-3)  # one or two experts stand far above the others
        axes[0].legend(fontsize=6)


def _scatter(axes: Axes, values: Row, name: str, label: str) -> None:
    for number, (layer, change) in enumerate(values["norm change"].items()):
        part, _, block = layer.split(".")[:3]
        axes.plot(change, values[name][layer], "o", markersize=3, color=COLOURS[number], label=f"{part} {block}")
    axes.set(xlabel="change of the router norm in fine-tuning", ylabel=label)
