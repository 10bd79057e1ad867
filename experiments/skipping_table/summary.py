"""Policies compared at exactly one share: KL by interpolation, and paired differences from otp with intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..intervals import Interval, bootstrap

Row = dict[str, Any]
_FLOOR = 1e-9  # nats; a policy that runs everything has a KL of zero


def neighbours(rows: Sequence[Row], case: str, share: float) -> tuple[Row, Row, float] | None:
    """The two rows of a case around a share, and how far the share is from the first to the second; None outside."""
    points = sorted((row for row in rows if row["case"] == case and "kl" in row), key=lambda row: row["share"])
    for low, high in itertools.pairwise(points):
        if low["share"] <= share <= high["share"] and high["share"] > low["share"]:
            return low, high, (share - low["share"]) / (high["share"] - low["share"])
    return None


def between(low: float, high: float, part: float) -> float:
    """Interpolated on the scale of log KL, which is nearly straight in the share."""
    a, b = math.log(max(low, _FLOOR)), math.log(max(high, _FLOOR))
    return math.exp(a + (b - a) * part)


def kl_at(rows: Sequence[Row], case: str, share: float) -> Interval | None:
    """KL of a case at exactly that share, with its bootstrap interval over windows."""
    found = neighbours(rows, case, share)
    if found is None:
        return None
    low, high, part = found

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return between(float(a.mean()), float(b.mean()), part)

    return bootstrap(statistic, low["kl_windows"], high["kl_windows"])


def difference_at(rows: Sequence[Row], first: str, second: str, share: float) -> Interval | None:
    """KL of `first` minus KL of `second` at exactly that share, paired over windows."""
    found = neighbours(rows, first, share), neighbours(rows, second, share)
    if found[0] is None or found[1] is None:
        return None
    (a, b, one), (c, d, other) = found

    def statistic(*columns: np.ndarray) -> float:
        means = [float(column.mean()) for column in columns]
        return between(means[0], means[1], one) - between(means[2], means[3], other)

    return bootstrap(statistic, *(row["kl_windows"] for row in (a, b, c, d)))


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(model, bits) -> its rows, in the order in which they come."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["bits"]), []).append(row)
    return found


def table(rows: Sequence[Row], shares: Sequence[float], at: float) -> str:
    """Markdown: KL at exact shares, and the paired differences from otp at one of them."""
    lines = []
    for (model, bits), mine in groups(rows).items():
        cases = [name for name in dict.fromkeys(row["case"] for row in mine) if "," not in name]
        lines += [f"**{model}, {bits} bits**: KL at a share of exactly", ""]
        lines += ["| policy | " + " | ".join(f"{share:g}" for share in shares) + f" | minus otp, at {at:g} |"]
        lines += ["| --- |" + " ---: |" * (len(shares) + 1)]
        for case in cases:
            cells = [_text(kl_at(mine, case, share)) for share in shares]
            paired = None if case == "otp" else difference_at(mine, case, "otp", at)
            lines.append(f"| {case} | " + " | ".join(cells) + f" | {_text(paired)} |")
        lines.append("")
    return "\n".join(lines)


def table_of_designs(rows: Sequence[Row]) -> str:
    """Markdown: the designs of otp, with the default beside them."""
    lines = []
    for (model, bits), mine in groups(rows).items():
        designs = [row for row in mine if row["case"].startswith("otp, ")]
        if not designs:
            continue
        target = designs[0]["target"]
        default = [row for row in mine if row["case"] == "otp" and row["target"] == target]
        lines += [f"**{model}, {bits} bits**, target {target:g}", ""]
        lines += ["| design | share | KL (95 % interval) | processor seconds |", "| --- | ---: | ---: | ---: |"]
        for row in [*default, *designs]:
            if "kl" in row:
                low, high = row["kl_interval"]
                cells = f"{row['share']:.3f} | {row['kl']:.5f} ({low:.5f} to {high:.5f}) | {row['seconds']:.0f}"
                lines.append(f"| {row['case']} | {cells} |")
            else:
                lines.append(f"| {row['case']} | | {row['failed']} | |")
        lines.append("")
    return "\n".join(lines)


def _text(found: Interval | None) -> str:
    return "-" if found is None else f"{found['mean']:.5f} ({found['low']:.5f} to {found['high']:.5f})"
