"""The record: everything that is reported, from the measured lines alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from experiments.intervals import bootstrap, over_runs

from .correlations import correlations, expert_values
from .measure import Measured
from .models import TEST_SEED, Run
from .rules import RANDOM, UNIFORM, Allocation, allocations, lifted
from .settings import Table
from .task import baselines

METRICS = ("rouge2", "loss")
Row = dict[str, Any]


def make_record(run: Run, measured: Sequence[Measured]) -> Row:
    """The record of a finished run."""
    settings = run.settings
    record: Row = {
        "format": "moesaic-switch/1",
        "models": _models(run, measured),
        "task": _task(run),
        "lifted": {
            str(each.seed): {name: lifted(scores) for name, scores in each.scores.items() if "lifted" in scores.details}
            for each in measured
        },
        "table": [row for title, table in settings.tables.items() for row in _table(measured, title, table)],
    }
    values = {each.seed: expert_values(each) for each in measured}
    record["experts"] = {str(seed): found for seed, found in values.items()}
    record["correlations"] = correlations(values, settings.draws)
    return _shortened(record)


def _models(run: Run, measured: Sequence[Measured]) -> Row:
    pretraining = json.loads(run.pretrained.metrics.read_text(encoding="utf-8"))
    found: Row = {"pretraining": {**pretraining, "recipe": run.settings.recipe.name}, "finetuned": []}
    for each in measured:
        full = each.lines.found[f"{each.seed}|full"]
        metrics = json.loads(run.finetuned(each.seed).metrics.read_text(encoding="utf-8"))
        test = {name: dict(bootstrap(np.mean, full[name], draws=run.settings.draws)) for name in METRICS}
        found["finetuned"].append({"seed": each.seed, **metrics, "test": test})
    return found


def _task(run: Run) -> Row:
    training = run.items("train")
    chosen = run.test[: run.settings.generated]
    return {
        "words": list(run.settings.words),
        "training_sentences": len(training),
        "scored": len(run.test),
        "generated": len(chosen),
        "domains": dict(Counter(item.domain for item in run.test)),
        "also_in_training": len({item.text for item in run.test} & {item.text for item in training}),
        "baselines": baselines(chosen, training, TEST_SEED),
    }


def _table(measured: Sequence[Measured], title: str, table: Table) -> list[Row]:
    """The rows of one table."""
    found: dict[tuple[float, str], list[list[Row]]] = {}  # budget and rule -> seed -> plans -> line
    for number, each in enumerate(measured):
        for line in allocations(each.weights, each.scores, table):
            name = RANDOM if line.rule.startswith(RANDOM) else line.rule
            seeds = found.setdefault((line.bits, name), [[] for _ in measured])
            seeds[number].append(_line(each, table.quantizer, line))
    draws = measured[0].run.settings.draws
    low = found[float(table.levels[0]), UNIFORM]
    rows = []
    for (bits, rule), seeds in found.items():
        row: Row = {"table": title, "bits": bits, "rule": rule, "stored": seeds[0][0]["stored"]}
        row |= _compare(seeds, None, draws)
        row["over_uniform"] = _compare(seeds, low, draws)
        if (bits, RANDOM) in found:
            row["over_random"] = _compare(seeds, found[bits, RANDOM], draws)
        rows.append(row)
    return rows


def _line(measured: Measured, quantizer: str, line: Allocation) -> Row:
    return measured.lines.found[f"{measured.seed}|{quantizer}|{line.key}"]


def _compare(seeds: list[list[Row]], other: list[list[Row]] | None, draws: int) -> Row:
    """ROUGE-2 and loss (less another rule's on the same sentences and model), over items and over seeds."""
    found: Row = {}
    for metric in METRICS:
        values = [np.mean([plan[metric] for plan in plans], axis=0) for plans in seeds]
        if other is not None:
            values = [
                mine - np.mean([plan[metric] for plan in plans], axis=0)
                for mine, plans in zip(values, other, strict=True)
            ]
        mean: Callable[[np.ndarray], float] = np.mean
        found[metric] = {
            "items": bootstrap(mean, np.mean(values, axis=0), draws=draws),
            "seeds": over_runs([float(each.mean()) for each in values]),
        }
    return found


def _shortened(value: Any) -> Any:
    """Floats to six digits, all through a record."""
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
