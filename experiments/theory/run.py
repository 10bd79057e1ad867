"""One case from training to measurements."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from . import data
from .cases import Case
from .constants import GROUPS, LEARNT
from .measure import (
    bits_needed,
    error_record,
    over_members,
    per_seed,
    rank_correlation,
    router_change,
    sensitivity,
    state,
)
from .model import Weights, tables
from .plans import errors_of_plans, scores
from .readings import read
from .roles import by_value
from .setting import Setting
from .train import train
from .variance import saved_by_max_var

SNAPSHOTS = (12, 25, 50, 100, 200, 400)
ALONE = (1, 2, 3, 4)  # widths of an expert that is quantized alone


def timed_case(case: Case) -> dict[str, Any]:
    """`run_case` on one thread, with the case's key and the processor seconds it took."""
    torch.set_num_threads(1)  # the tensors are small, and one thread gives the same sums everywhere
    start = time.process_time()
    found = run_case(case)
    return found | {"key": case.key, "seconds": round(time.process_time() - start, 1)}


def run_case(case: Case) -> dict[str, Any]:
    """Train, then measure at every snapshot, and in depth when the task is just learnt and at the end."""
    setting = case.setting
    frames = data.frames(setting)
    steps = [step for step in SNAPSHOTS if step <= setting.steps]
    kept = train(setting, frames, [0, *steps])
    before = kept[0]
    found: dict[str, Any] = {"case": case.name, "track": case.track, "change": case.change, "setting": asdict(setting)}
    found["steps"], depth = {}, {}
    learnt = None
    for step in steps:
        readings = read(setting, frames, kept[step], widths=())
        errors = error_record(readings, torch.zeros(before.router.shape[:2], dtype=torch.int64))
        found["steps"][str(step)] = state(setting, frames, before, kept[step]) | {"errors": errors}
        balanced = [value for value in errors["balanced"] if value is not None]
        if learnt is None and sum(balanced) / len(balanced) <= LEARNT:
            learnt = step
    for step in {learnt or steps[-1], steps[-1]}:
        depth[str(step)] = in_depth(setting, frames, before, kept[step])
    found |= {"learnt": learnt, "end": steps[-1], "depth": depth}
    if case.variance:
        found["variance"] = saved_by_max_var(setting, frames, before, kept[learnt or steps[-1]])
    return found


def in_depth(setting: Setting, frames: torch.Tensor, before: Weights, after: Weights) -> dict[str, Any]:
    """Bits that groups need, sensitivity of single experts, errors of plans."""
    readings = read(setting, frames, after)
    roles = by_value(setting, tables(after.in_patterns(frames))[0], after.signs)
    change = router_change(before, after)
    alone = {}
    for bits in ALONE:
        rises = sensitivity(readings, bits)
        alone[str(bits)] = {name: per_seed(over_members(rises, roles.members(name))) for name in GROUPS}
        alone[str(bits)]["rank correlation with small change"] = per_seed(rank_correlation(-change, rises))
        learned = ~roles.members("none")
        alone[str(bits)]["the same, experts that learned a feature"] = per_seed(_within(-change, rises, learned))
    return {
        "bits": bits_needed(readings, roles),
        "alone": alone,
        "plans": errors_of_plans(readings, scores(setting, frames, before, after, roles)),
    }


def _within(x: torch.Tensor, y: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Rank correlation over the members alone, NaN for fewer than three. `[seeds]`"""
    found = [
        rank_correlation(a[m][None], b[m][None])[0] if m.sum() > 2 else torch.tensor(torch.nan, dtype=torch.float64)
        for a, b, m in zip(x, y, members, strict=True)
    ]
    return torch.stack(found)
