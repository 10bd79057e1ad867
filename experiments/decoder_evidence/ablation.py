"""Measure the plans of the ablations, every different plan once, and compare them with plans by lot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from moesaic.records import BitPlan

from ..intervals import over_runs
from ..journal import Journal
from ..mixture import Mixture
from .plans import BUDGETS, plan_key, plans
from .setting import QUANTIZER, Setting
from .values import Values, Weights

RANDOM = "random, seed "


def measure_plans(
    setting: Setting, values: Values, weights: Weights, *, finished_only: bool = False
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Budget by budget every case with the KL of every block.

    Plans that are in the work folder are not measured again, nor are those that several cases share. With
    `finished_only` none is: cases that are not there are left out, and so are budgets without random plans.
    """
    _, blocks = setting.blocks()
    journal = Journal(setting.work / "plans.jsonl", {**setting.settings(), "blocks": len(blocks)})
    shapes = [layer.shape for layer in weights.checkpoint.layers]
    mixture: Mixture | None = None
    for budget in BUDGETS:
        found = []
        for name, plan in plans(budget, values, shapes, weights.view, random=setting.sizes.random_plans):
            key = plan_key(plan)
            if key not in journal.found and finished_only:
                continue
            if key not in journal.found:
                mixture = mixture or Mixture(setting.model, blocks.ids, QUANTIZER)
                start = time.monotonic()
                journal.add(key, _measured(mixture, plan))
                mean, took = float(np.mean(journal.found[key]["kl"])), time.monotonic() - start
                print(f"{budget.name}, {name}: {mean:.4f}, {took:.0f} s", flush=True)
            found.append({"name": name, "key": key, "bits": plan.reached_bits(shapes), **journal.found[key]})
        if any(case["name"].startswith(RANDOM) for case in found):
            yield budget.name, found


def _measured(mixture: Mixture, plan: BitPlan) -> dict[str, list[float]]:
    """KL and rise of the loss of every block."""
    measured = mixture.kl(plan)
    parts = {"kl": measured.kl, "loss": measured.loss - mixture.losses}
    return {name: [float(f"{value:.5g}") for value in part.tolist()] for name, part in parts.items()}


def compare(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The cases of one budget: what chance gives, and every other case against it.

    The difference is paired: for each block, KL of the plan minus the mean KL of the random plans. Its interval is over
    the blocks and says whether the plan differs from these random plans on other text. `better random` counts the
    random plans with a smaller mean KL, which says whether a lot could have done it.
    """
    lots = np.asarray([case["kl"] for case in cases if case["name"].startswith(RANDOM)])  # (seeds, blocks)
    means, chance = lots.mean(axis=1), lots.mean(axis=0)
    rows = [
        {
            "name": case["name"],
            "plan": case["key"],
            "bits": round(case["bits"], 4),
            "kl": _short(case["kl"]),
            "loss": _short(case["loss"]),
            "against random": _short((np.asarray(case["kl"]) - chance).tolist()),
            "better random": int((means < np.mean(case["kl"]) - 1e-12).sum()),
        }
        for case in cases
        if not case["name"].startswith(RANDOM)
    ]
    random = {"seeds": len(lots), "kl": _short(means.tolist()), "all": sorted(round(float(m), 5) for m in means)}
    return {"random": random, "cases": rows}


def _short(values: list[float]) -> list[float]:
    interval = over_runs(values)
    return [round(interval[part], 5) for part in ("mean", "low", "high")]
