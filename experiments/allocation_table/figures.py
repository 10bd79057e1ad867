"""The table as a figure, from its records: `python -m experiments.allocation_table.figures`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.figures import curve, panels
from experiments.intervals import Interval

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "experiments" / "records"
FIGURE = ROOT / "docs" / "figures" / "allocation.svg"
MODELS = ("mixtral_20m", "fine_grained_20m")
QUANTIZERS = ("rtn", "gptq")
SHOWN = (
    "GEMQ-style global",
    "AlphaQ",
    "PMQ, paper form",
    "routing weight",
    "MaxVar alone",
    "random, seed 0",
    "router-norm change",
    "router norm",
)


def draw(path: Path = FIGURE) -> None:
    """KL against stored bits, a panel for a model and a quantizer."""
    shown = [(model, quantizer) for quantizer in QUANTIZERS for model in MODELS]
    with panels(path, len(shown)) as axes:
        for axis, (model, quantizer) in zip(axes, shown, strict=True):
            record = json.loads((RECORDS / f"allocation_{model}.json").read_text(encoding="utf-8"))
            for number, rule in enumerate(SHOWN):
                rows = [row for row in record["rows"] if row["rule"] == rule and row["quantizer"] == quantizer]
                curve(axis, [row["stored_bpw"] for row in rows], [_interval(row) for row in rows], rule, number)
            axis.set(title=f"{model}, {quantizer}", xlabel="stored bits a weight", yscale="log")
        axes[0].set_ylabel("KL from full precision, nats a token")
        axes[-1].legend(fontsize=7)


def _interval(row: dict[str, Any]) -> Interval:
    return Interval(mean=row["kl"], low=max(1e-4, row["kl"] - row["half"]), high=row["kl"] + row["half"], n=0)


if __name__ == "__main__":
    draw()
