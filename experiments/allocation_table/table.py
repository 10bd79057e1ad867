"""From records to Markdown: the table, and rank correlations between the rules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from moesaic.allocate.pmq import EXPONENTS
from moesaic.evaluate.intervals import paired_mean_difference
from moesaic.records import CostTable, Scores

from .cases import Rule
from .plans import Planner


@dataclass(frozen=True)
class Row:
    """A rule at a budget with a quantizer, and what was measured of its plan.

    Attributes:
        rule, quantizer, bits: which.
        stored_bpw: stored bits a weight of the experts.
        kl, losses: a mean for each block of held-out text.
    """

    rule: str
    quantizer: str
    bits: float
    stored_bpw: float
    kl: Sequence[float]
    losses: Sequence[float]

    @property
    def mean(self) -> float:
        """KL from full precision over all blocks."""
        return math.fsum(self.kl) / len(self.kl)

    @property
    def half(self) -> float:
        """Half the width of its 95 % interval, from the spread between blocks."""
        return 1.96 * float(np.std(self.kl, ddof=1)) / math.sqrt(len(self.kl))

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(math.fsum(self.losses) / len(self.losses))


def markdown(rows: list[Row]) -> str:
    """One table a quantizer: rules down, budgets across.

    Bold: the least KL of a column. A star: the paired difference from it, block by block, does not exclude zero.
    """
    parts = []
    for quantizer in dict.fromkeys(row.quantizer for row in rows):
        mine = [row for row in rows if row.quantizer == quantizer]
        columns = list(dict.fromkeys(row.bits for row in mine))
        best = {bits: min((row for row in mine if row.bits == bits), key=lambda row: row.mean) for bits in columns}
        found = {(row.rule, row.bits): row for row in mine}
        heads = [f"{bits:g} bits ({best[bits].stored_bpw:.3f} stored)" for bits in columns]
        lines = [f"| {quantizer}: KL, nats a token | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(columns)]
        for rule in dict.fromkeys(row.rule for row in mine):
            cells = [_cell(found.get((rule, bits)), best[bits]) for bits in columns]
            lines.append(f"| {rule} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(row: Row | None, best: Row) -> str:
    if row is None:
        return ""
    text = f"{row.mean:.4f} ± {row.half:.4f}"
    if row.mean == best.mean:
        return f"**{text}**"
    return f"{text} *" if paired_mean_difference(row.kl, best.kl).low <= 0 else text


def importance(planner: Planner, rules: list[Rule]) -> dict[str, list[list[float]]]:
    """Rule -> layer -> one number an expert, larger = more bits; for costs what the step from 1 to 3 bits saves."""
    found: dict[str, list[list[float]]] = {}
    for rule in rules:
        scores = planner.scores(rule)
        if isinstance(scores, CostTable):
            weighted = scores.weighted(*EXPONENTS[rule.knobs.get("form", "released")])
            found[rule.name] = [[row[0] - row[-1] for row in rows] for rows in weighted.layers.values()]
        elif isinstance(scores, Scores):
            found[rule.name] = [list(values) for values in scores.layers.values()]
    return found


def correlations(values: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """Spearman's rank correlation within layers, averaged over the layers: names, and a matrix in their order."""
    names = list(values)
    matrix = [[0.0] * len(names) for _ in names]
    for a, b in itertools.product(range(len(names)), repeat=2):
        pairs = zip(values[names[a]], values[names[b]], strict=True)
        each = [float(spearmanr(x, y).statistic) for x, y in pairs if len(set(x)) > 1 and len(set(y)) > 1]
        matrix[a][b] = round(math.fsum(each) / len(each), 4) if each else math.nan
    return {"names": names, "matrix": matrix}


def correlations_markdown(found: Mapping[str, Any]) -> str:
    """The matrix as a Markdown table; columns have the numbers of the rows."""
    names = found["names"]
    lines = ["| | " + " | ".join(str(at) for at in range(1, len(names) + 1)) + " |"]
    lines.append("| --- |" + " ---: |" * len(names))
    for at, name in enumerate(names):
        cells = [f"{value:+.2f}" for value in found["matrix"][at]]
        lines.append(f"| {at + 1} {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
