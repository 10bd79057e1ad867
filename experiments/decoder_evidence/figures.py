"""Figures from records: correlations, the early order, the ablations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from ..figures import curve, dots, panels
from ..intervals import Interval
from .correlate import long
from .values import CHANGE, PER_USE, TRUTH

MODELS = ("mixtral_20m", "fine_grained_20m", "demo")
LABELS = {
    "mixtral_20m": "Mixtral, 8 experts",
    "fine_grained_20m": "fine-grained, 32 experts",
    "demo": "demo, 8 experts",
}
CLAIM = ("token rarity", "largest domain share", "selection count", "output norm", "weighted output norm")
NO_CASES = ("reversed + MaxVar", "zeta 1.5", "zeta 5", "final norm + MaxVar, zeta 2")


def draw(records: Path, out: Path) -> list[Path]:
    """Draw all figures for the records `evidence_MODEL.json` that are there; returns the files."""
    found = {name: records / f"evidence_{name}.json" for name in MODELS}
    if not any(path.exists() for path in found.values()):
        return []
    loaded = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.exists()}
    made = [
        _with_truth(loaded, out / "evidence_decoders_truth.svg"),
        _claims(loaded, out / "evidence_decoders_rarity.svg"),
    ]
    made += [_heat(record, out / f"evidence_decoders_pairs_{name}.svg", name) for name, record in loaded.items()]
    early = {name: record["early"] for name, record in loaded.items() if record.get("early")}
    if early:
        made.append(_early(early, out / "evidence_decoders_early.svg"))
    made += [
        _ablations(record, out / f"evidence_decoders_ablations_{name}.svg", name)
        for name, record in loaded.items()
        if record["ablations"]
    ]
    return made


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=3, fontsize=7, frameon=False)


def _column(record: dict[str, Any], target: str, names: list[str]) -> dict[str, Interval]:
    found = record["correlations"]
    at = found["names"].index(target)
    rows = {name: long(found["overall"][found["names"].index(name)][at]) for name in names if name in found["names"]}
    return {name: each for name, each in rows.items() if math.isfinite(each["mean"])}


def _with_truth(records: dict[str, Any], path: Path) -> Path:
    """Every measure against the truth and against the truth per use."""
    everything = list(dict.fromkeys(name for record in records.values() for name in record["correlations"]["names"]))
    names = [name for name in everything if name not in (TRUTH, PER_USE)]
    with panels(path, 2, width=5.2, height=5.4) as axes:
        for one, target in zip(axes, (TRUTH, PER_USE), strict=True):
            for number, (name, record) in enumerate(records.items()):
                rows = _column(record, target, names)
                whole = {each: rows.get(each, long([None] * 3)) for each in names}
                dots(one, whole, number, LABELS[name], shift=0.22 * (number - 1))
            one.axvline(0, color="black", linewidth=0.8)
            one.set_xlim(-1.05, 1.05)
            one.set_xlabel(
                f"Spearman with {'KL of this expert alone at 2 bits' if target == TRUTH else 'that KL per use'}"
            )
        axes[1].set_yticklabels([])
        _legend(axes[0])
    return path


def _claims(records: dict[str, Any], path: Path) -> Path:
    """What experts with a small norm change serve: the first claim."""
    with panels(path, width=6.0, height=3.0) as (one,):
        for number, (name, record) in enumerate(records.items()):
            if CHANGE in record["correlations"]["names"]:
                rows = _column(record, CHANGE, list(CLAIM))
                whole = {each: rows.get(each, long([None] * 3)) for each in CLAIM}
                dots(one, whole, number, LABELS[name], shift=0.22 * (number - 1))
        one.axvline(0, color="black", linewidth=0.8)
        one.set_xlim(-1.05, 1.05)
        one.set_xlabel("Spearman with the change of the router norm")
        _legend(one)
    return path


def _heat(record: dict[str, Any], path: Path, name: str) -> Path:
    """All pairs."""
    found = record["correlations"]
    values = [[float("nan") if each[0] is None else each[0] for each in row] for row in found["overall"]]
    with panels(path, width=7.0, height=6.2) as (one,):
        image = one.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
        one.grid(visible=False)
        one.set_xticks(range(len(values)), found["names"], rotation=90, fontsize=7)
        one.set_yticks(range(len(values)), found["names"], fontsize=7)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if abs(value) >= 0.25:  # not NaN either
                    colour = "white" if abs(value) > 0.6 else "black"
                    one.text(
                        x,
                        y,
                        f"{value:.1f}".replace("-0.0", "0.0"),
                        ha="center",
                        va="center",
                        fontsize=5.5,
                        color=colour,
                    )
        one.set_title(f"{LABELS[name]}: Spearman, mean of layers", fontsize=9)
        one.figure.colorbar(image, ax=one, shrink=0.7)
    return path


def _early(early: dict[str, Any], path: Path) -> Path:
    """How early the final order of the norm change is there, and how it agrees with the truth."""
    with panels(path, 2) as axes:
        for one, part in zip(axes, ("with final change", "with truth"), strict=True):
            for number, (name, rows) in enumerate(early.items()):
                curve(one, [row["step"] for row in rows], [long(row[part]) for row in rows], LABELS[name], number)
            one.axhline(0, color="black", linewidth=0.8)
            one.set_xscale("log")
            one.set_ylim(-1.05, 1.05)
            one.set_xlabel("training step")
            one.set_ylabel(f"Spearman of the change so far\nwith the {part.removeprefix('with ')}")
        _legend(axes[0])
    return path


def _ablations(record: dict[str, Any], path: Path, name: str) -> Path:
    """Every case of the ablations as its KL over that of random plans."""
    budgets = record["ablations"]
    every = dict.fromkeys(case["name"] for part in budgets.values() for case in part["cases"])
    cases = [name for name in every if not any(no in name for no in NO_CASES)]
    with panels(path, len(budgets), width=3.6, height=6.0) as axes:
        for one, (budget, part) in zip(axes, budgets.items(), strict=True):
            _budget(one, part, cases)
            one.set_title(f"{LABELS[name]}, {budget} bits" if one is axes[0] else f"{budget} bits", fontsize=9)
        for one in axes[1:]:
            one.set_yticklabels([])
    return path


def _budget(one: Axes, part: dict[str, Any], cases: list[str]) -> None:
    lot = part["random"]["kl"][0]
    found = {case["name"]: case for case in part["cases"]}
    rows = {}
    for name in cases:
        difference = found[name]["against random"] if name in found else [None] * 3
        rows[name] = long([None if value is None else 1 + value / lot for value in difference])
    low, high = part["random"]["all"][0] / lot, part["random"]["all"][-1] / lot
    one.axvspan(low, high, color="#888888", alpha=0.2, linewidth=0)
    one.axvline(1, color="black", linewidth=0.8)
    dots(one, rows)
    one.set_xscale("log")
    one.set_xlim(0.08, 3)
    one.set_ylim(-0.6, len(rows) - 0.4)  # also where the last rows are empty
    ticks = (0.1, 0.2, 0.5, 1, 2)
    one.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    one.xaxis.set_minor_formatter(NullFormatter())
    one.set_xlabel("KL over random plans'\n(grey: their range)")
