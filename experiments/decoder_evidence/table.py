"""A record as Markdown tables, for the terminal, the log and the documentation."""

from __future__ import annotations

from typing import Any

from .values import CHANGE, PER_USE, TRUTH


def summary(record: dict[str, Any]) -> str:
    """All tables of a record."""
    parts = [_correlations(record), _early(record), _stand_in(record), *_ablations(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _correlations(record: dict[str, Any]) -> str:
    found = record["correlations"]
    names = found["names"]
    targets = [name for name in (TRUTH, PER_USE, CHANGE) if name in names]
    lines = [
        f"{record['settings']['model']}: Spearman, mean of layers; truth's own reliability "
        f"{record['truth reliability']:.2f}; {found['experts left out']} experts left out",
        "",
        "| measure | " + " | ".join(f"with {target}" for target in targets) + " | raw, all layers, with truth |",
        "| --- |" + " ---: |" * (len(targets) + 1),
    ]
    for at, name in enumerate(names):
        cells = [_interval(found["overall"][at][names.index(target)], 2) for target in targets]
        raw = found["pooled raw values with the truth"].get(name)
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if raw is None else f'{raw:+.2f}'} |")
    return "\n".join(lines)


def _early(record: dict[str, Any]) -> str:
    if "early" not in record:
        return ""
    lines = ["| step | mean change | with final change | with truth |", "| ---: | ---: | ---: | ---: |"]
    for row in record["early"]:
        cells = [_interval(row[name], 2) for name in ("with final change", "with truth")]
        lines.append(f"| {row['step']} | {row['mean change']:+.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _stand_in(record: dict[str, Any]) -> str:
    rows = record.get("stand-in")
    if not rows:
        return ""
    names = list(next(iter(rows.values())))
    lines = ["| layer | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    lines += [
        f"| {number} | " + " | ".join(f"{v:.3f}" for v in row.values()) + " |"
        for number, row in enumerate(rows.values())
    ]
    return "\n".join(lines)


def _ablations(record: dict[str, Any]) -> list[str]:
    found = []
    for budget, part in record["ablations"].items():
        lot = part["random"]
        lines = [
            f"| levels {budget} | KL | minus random | random plans that are better |",
            "| --- | ---: | ---: | ---: |",
            f"| random, {lot['seeds']} plans | {_interval(lot['kl'], 4, sign='')} | | |",
        ]
        for case in sorted(part["cases"], key=lambda case: case["kl"][0]):
            cells = f"{_interval(case['kl'], 4, sign='')} | {_interval(case['against random'], 4)}"
            lines.append(f"| {case['name']} | {cells} | {case['better random']} of {lot['seeds']} |")
        found.append("\n".join(lines))
    return found


def _interval(values: list[float | None], digits: int, sign: str = "+") -> str:
    if values[0] is None:
        return ""
    mean, low, high = (f"{value:{sign}.{digits}f}" if value is not None else "?" for value in values)
    return f"{mean} ({low} to {high})"
