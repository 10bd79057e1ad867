"""Figures of the skipping table, from its records alone.

python -m experiments.skipping_table.draw experiments/records/skipping_*.json --out docs/figures
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..figures import curve, panels
from ..intervals import Interval
from .rows import read_record
from .summary import groups

ORDER = ("otp", "odp", "threshold", "top_p", "fixed_k", "pesf")
TITLES = {"kl": "KL from the unpruned model, nats a token", "perplexity": "perplexity"}


def draw(rows: list[dict[str, Any]], path: Path, measure: str) -> None:
    """Curves of one measure against the share, a panel a model and number of bits."""
    found = groups([row for row in rows if measure in row and "," not in row["case"]])
    with panels(path, columns=len(found)) as axes:
        for place, ((model, bits), mine) in enumerate(found.items()):
            for number, case in enumerate(ORDER):
                points = sorted((row for row in mine if row["case"] == case), key=lambda row: row["share"])
                if points:
                    values = [_interval(row, measure) for row in points]
                    curve(axes[place], [row["share"] for row in points], values, case, number)
            axes[place].set_yscale("log")
            axes[place].set_xlabel("share of the expert activations that ran")
            axes[place].set_title(f"{model}, {'full precision' if bits == 'full' else f'{bits} bits'}", fontsize=9)
        axes[0].set_ylabel(TITLES[measure])
        axes[0].legend(fontsize=7, frameon=False)


def _interval(row: dict[str, Any], measure: str) -> Interval:
    low, high = row[f"{measure}_interval"]
    return Interval(mean=row[measure], low=max(low, 1e-6), high=high, n=len(row["kl_windows"]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    a = parser.parse_args()
    for path in a.records:
        for measure in TITLES:
            draw(read_record(path), a.out / f"{path.stem}_{measure}.svg", measure)


if __name__ == "__main__":
    main()
