"""The record as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def cell(interval: Row, digits: int) -> str:
    """A mean and half the width of its interval."""
    return f"{interval['mean']:.{digits}f} ± {(interval['high'] - interval['low']) / 2:.{digits}f}"


def markdown(record: Row) -> str:
    """All tables of a record."""
    parts = [_models(record)]
    for title in dict.fromkeys(row["table"] for row in record["table"]):
        rows = [row for row in record["table"] if row["table"] == title]
        for metric, digits, unit in (("rouge2", 2, "ROUGE-2, %"), ("loss", 4, "loss, nats a token")):

            def value(row: Row, metric: str = metric, digits: int = digits) -> str:
                return cell(row[metric]["items"], digits)

            def gain(row: Row, metric: str = metric, digits: int = digits) -> str:
                return cell(row["over_random"][metric]["items"], digits) if "over_random" in row else ""

            parts.append(_grid(rows, f"{title}: {unit}", value))
            parts.append(_grid(rows, f"{title}: {unit}, less random's", gain))
    parts.append(_correlations(record["correlations"]))
    return "\n\n".join(parts) + "\n"


def _models(record: Row) -> str:
    pretraining, lines = record["models"]["pretraining"]["valid"]["overall"], []
    lines.append(f"Pretraining: valid loss {pretraining['loss']:.3f} (unigram {pretraining['unigram_loss']:.3f})")
    for each in record["models"]["finetuned"]:
        losses = f"valid loss {each['valid_loss_before']:.3f} -> {each['valid_loss']:.3f}"
        test = f"test ROUGE-2 {cell(each['test']['rouge2'], 2)}, loss {cell(each['test']['loss'], 4)}"
        lines.append(f"Fine-tuned, seed {each['seed']}: {losses}, {test}")
    known = ", ".join(f"{name} {value:.2f}" for name, value in record["task"]["baselines"].items())
    return "\n".join([*lines, f"ROUGE-2 without a model: {known}"])


def _grid(rows: list[Row], title: str, text: Callable[[Row], str]) -> str:
    """Rules down, widths across."""
    widths = sorted({row["bits"] for row in rows})
    found = {(row["rule"], row["bits"]): text(row) for row in rows}
    lines = [f"| {title} | {' | '.join(f'{bits:g}' for bits in widths)} |", "| --- |" + " ---: |" * len(widths)]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        cells = [found.get((rule, bits), "") for bits in widths]
        if any(cells):
            lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _correlations(rows: list[Row]) -> str:
    lines = ["| Spearman, mean of layers | over layers | over seeds |", "| --- | ---: | ---: |"]
    for row in rows:
        intervals = [f"{each['mean']:+.2f} ({each['low']:+.2f} to {each['high']:+.2f})" for each in _both(row)]
        lines.append(f"| {row['of']} and {row['with']} | {' | '.join(intervals)} |")
    return "\n".join(lines)


def _both(row: Row) -> tuple[Row, Row]:
    return row["layers"], row["seeds"]
