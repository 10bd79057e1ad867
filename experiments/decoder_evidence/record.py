"""From finished pieces to the record: values, correlations, early order, ablations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .ablation import compare, measure_plans
from .correlate import Correlations, pooled, short
from .setting import Setting
from .training import early_order, norms_by_step, stand_in
from .truth import means, measure_truth, reliability
from .values import CHANGE, PER_USE, TRUTH, Values, Weights, per_use, with_text, without_text


def make_record(setting: Setting, *, finished_only: bool = False) -> Iterator[dict[str, Any]]:
    """Measure what is missing and put it together; the record is given again whenever a part of it is complete.

    Args:
        setting: the model and its texts.
        finished_only: measure no more plans; take those that the work folder has.
    """
    setting.work.mkdir(parents=True, exist_ok=True)
    weights = Weights.open(setting)
    values: Values = {**without_text(weights), **_kept(setting, weights)}
    truth = measure_truth(setting)
    intervals = means(truth)
    values[TRUTH] = {layer: [each["mean"] for each in row] for layer, row in intervals.items()}
    values[PER_USE] = per_use(values[TRUTH], values["selection count"])
    draws = setting.sizes.draws
    record: dict[str, Any] = {
        "settings": setting.settings(),
        "trained": _metrics(setting),
        "values": {name: {layer: _digits(row) for layer, row in each.items()} for name, each in values.items()},
        "truth intervals": {
            layer: [[float(f"{each[end]:.4g}") for end in ("low", "high")] for each in row]
            for layer, row in intervals.items()
        },
        "truth reliability": round(reliability(truth, setting.blocks()[0].sources), 3),
        "correlations": _correlations(values, draws),
    }
    if CHANGE in values:
        record["stand-in"] = stand_in(values)
    if setting.run is not None:
        norms = norms_by_step(weights.checkpoint, setting.run)
        if 0 in norms and CHANGE in values:
            record["early"] = early_order(norms, values, draws=draws)
    record["ablations"] = {}
    yield record
    for budget, cases in measure_plans(setting, values, weights, finished_only=finished_only):
        record["ablations"][budget] = compare(cases)
        yield record


def _kept(setting: Setting, weights: Weights) -> Values:
    """The values that text shows, from the work folder where they are there."""
    path = setting.work / "with_text.json"
    wanted = setting.settings()
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == json.loads(json.dumps(wanted)):
            return kept["values"]
    values = with_text(setting, weights)
    path.write_text(json.dumps({"settings": wanted, "values": values}), encoding="utf-8")
    return values


def _correlations(values: Values, draws: int) -> dict[str, Any]:
    names = [name for name in values if name not in ("initial norm", PER_USE)] + [PER_USE]
    found = Correlations({name: values[name] for name in names}, draws=draws)
    targets = [name for name in (TRUTH, PER_USE, CHANGE) if name in names]
    return {
        "names": names,
        "experts left out": found.left_out,
        "overall": [[short(each) for each in row] for row in found.matrix()],
        "by layer": {
            target: {
                layer: {name: short(found.within(layer, name, target)) for name in names} for layer in found.layers
            }
            for target in targets
        },
        "pooled raw values with the truth": {
            name: round(pooled(values[name], values[TRUTH]), 3) for name in names if name != TRUTH
        },
    }


def _metrics(setting: Setting) -> Any:
    """Length and held-out results of the training run, where it left them."""
    for path in (setting.model / "metrics.json", *(() if setting.run is None else (setting.run / "metrics.json",))):
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            kept = {name: value for name, value in found.items() if not isinstance(value, dict)}
            return {**kept, **{name: found[name]["overall"] for name in ("valid", "test") if name in found}}
    return None


def _digits(row: list[float]) -> list[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in row]


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write a record as JSON with a line for each part of a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, part in record.items():
        if isinstance(part, dict):
            rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())
            lines.append(f"{json.dumps(name)}: {{\n{rows}\n}}")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(part)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
