"""From records to a Markdown table and to rank correlations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from moesaic import CompressOptions
from moesaic.checkpoint.reader import Checkpoint
from moesaic.pipeline import measure, open_calibration, score
from moesaic.records import CostTable

from .cases import rules


def markdown(records: list[dict[str, Any]]) -> str:
    """One table a quantizer: rules down, budgets across, KL with its interval; the best of a column is bold."""
    parts = []
    for quantizer in dict.fromkeys(record["quantizer"] for record in records):
        mine = [record for record in records if record["quantizer"] == quantizer]
        columns = list(dict.fromkeys((record["measure"], record["budget"]) for record in mine))
        found = {(record["rule"], record["measure"], record["budget"]): record for record in mine}
        best = {
            column: min(record["kl"]["mean"] for record in mine if (record["measure"], record["budget"]) == column)
            for column in columns
        }
        heads = [f"{budget:g} {'code bits' if name == 'bits' else 'stored bits'}" for name, budget in columns]
        lines = [f"| {quantizer}: KL, nats a token | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(columns)]
        for rule in dict.fromkeys(record["rule"] for record in mine):
            cells = [_cell(found.get((rule, *column)), best[column]) for column in columns]
            lines.append(f"| {rule} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(record: dict[str, Any] | None, best: float) -> str:
    if record is None:
        return ""
    kl = record["kl"]
    text = f"{kl['mean']:.4f} ± {(kl['high'] - kl['low']) / 2:.4f}"
    return f"**{text}**" if kl["mean"] == best else text


def importance(folder: Path, initial: Path | None, stats: Path, text: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Rule -> layer -> one number an expert, larger = more bits; for costs what the step from 1 to 3 bits saves."""
    checkpoint = Checkpoint.open(folder)
    found = {}
    for rule in rules(initial):
        if ("MaxVar" in rule.name and rule.name != "MaxVar alone") or rule.name == "uniform" or rule.form == "paper":
            continue
        options = CompressOptions(bits=2.5, levels=(1, 2, 3), stats=stats, **rule.options, **text)
        scores = score(checkpoint, options, measure(open_calibration(checkpoint, options, stats.parent), options))
        if isinstance(scores, CostTable):
            weighted = scores.weighted(1, 1.5, 1)
            found[rule.name] = [[row[0] - row[-1] for row in rows] for rows in weighted.layers.values()]
        else:
            found[rule.name] = [list(values) for values in scores.layers.values()]
    return found


def correlations(values: dict[str, list[list[float]]]) -> str:
    """Spearman's rank correlation within layers, averaged over the layers, as a Markdown table."""
    names = list(values)
    lines = ["| | " + " | ".join(str(at) for at in range(1, len(names) + 1)) + " |"]
    lines.append("| --- |" + " ---: |" * len(names))
    for at, name in enumerate(names, 1):
        cells = []
        for other in names:
            pairs = zip(values[name], values[other], strict=True)
            each = [float(spearmanr(a, b).statistic) for a, b in pairs if len(set(a)) > 1 and len(set(b)) > 1]
            cells.append(f"{sum(each) / len(each):+.2f}" if each else "")
        lines.append(f"| {at} {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
