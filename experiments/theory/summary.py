"""From numbers by seed to the record: means with 95 % intervals over seeds, as `[mean, low, high, seeds]`.

Seeds in which a quantity does not exist (no expert of the group) are left out, and the fourth number says how many
remain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.intervals import Interval, over_runs

from .cases import VARIED
from .constants import GROUPS, LEARNT, NOISE_LIMIT, RANDOM_PLANS, RATIO_WIDTH, ROLE_RATIO, TOLERATED, ZETA

PerSeed = Sequence[float | None]
Row = list[float]
KEPT = ("experts", "router_change", "activation")
ORDERS = (
    "router_change: prevalent > rarer",
    "router_change: prevalent > rarer by direction",
    "router_change: rarer > none",
    "router_norm: prevalent > rarer",
)
WITH_ALL_STEPS = (0.1, 0.2)  # shares at which a track that is not varied is shown over time
KEPT_PAIRS = ("3/1 at 2", "3/2 at 2.5", "4/2 at 3", "5/3 at 4")
WIDTHS_ALONE = ("2",)
DIFFERENCES = ("small change", "large change", "frequently used", "small change, idle experts last")
ALONE = ("rank correlation with small change", "the same, experts that learned a feature", *GROUPS)


def interval(values: PerSeed) -> Row | None:
    """Mean and interval of the seeds that have a value; None if none has."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = over_runs(known)
    return [*(float(f"{found[key]:.3g}") for key in ("mean", "low", "high")), found["n"]]


def as_interval(row: Row | None) -> Interval:
    """A row of the record as `figures` takes it; NaN where there is none."""
    mean, low, high, number = row if row is not None else (math.nan, math.nan, math.nan, 0)
    return Interval(mean=mean, low=low, high=high, n=int(number))


def paired(left: PerSeed, right: PerSeed) -> list[float | None]:
    """Differences by seed; None where one of the two is missing."""
    return [None if x is None or y is None else x - y for x, y in zip(left, right, strict=True)]


def _log2_ratio(upper: PerSeed, lower: PerSeed) -> list[float | None]:
    return [math.log2(x / y) if x and y else None for x, y in zip(upper, lower, strict=True)]


def crossings(noise: Sequence[PerSeed]) -> list[float | None]:
    """Bits at which the noise falls to `NOISE_LIMIT` for good, by seed: linear in the logarithm between widths.

    None where there is no noise to speak of, or where it is below the limit at every width or above it at all.
    """
    return [_crossing(column) for column in zip(*noise, strict=True)]


def _crossing(column: PerSeed) -> float | None:
    if any(value is None or value <= 0 for value in column):
        return None
    height = [math.log2(value / NOISE_LIMIT) for value in column if value is not None]
    for at in range(len(height) - 1, 0, -1):
        left, right = height[at - 1], height[at]
        if left > 0 >= right:
            return at + left / (left - right)
    return None


def share_above(values: PerSeed, limit: float) -> Row:
    """In how many of the seeds that have a value it is above the limit: `[those, all]`."""
    known = [value for value in values if value is not None]
    return [sum(value > limit for value in known), len(known)]


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of an experiment from its finished cases."""
    return {
        "constants": {
            "learnt_balanced_error": LEARNT,
            "tolerated_rise": TOLERATED,
            "noise_limit": NOISE_LIMIT,
            "role_ratio": ROLE_RATIO,
            "zeta": ZETA,
        },
        "cases": [_case(record) for record in records],
    }


def _case(record: Mapping[str, Any]) -> dict[str, Any]:
    learnt, end = record["learnt"], record["end"]
    moments = {"learnt": learnt or end, "end": end}
    found = {key: record[key] for key in ("case", "track", "change", "setting", "learnt", "end", "seconds")}
    a = record["setting"]["a"]
    found["log2_ratio"] = round(math.log2((1 - a) / a), 4)
    swept, varied = not record["change"], record["track"] in VARIED
    found["steps"] = {
        step: _state(state)
        for step, state in record["steps"].items()
        if (swept and (varied or a in WITH_ALL_STEPS)) or int(step) in moments.values()
    }
    found["at"] = {
        name: _depth(record["depth"][str(step)], curves=swept and name == "learnt") for name, step in moments.items()
    }
    plans = record["depth"][str(moments["learnt"])]["plans"]
    found["plans_against_random"] = _against_random(plans)
    if swept and varied:
        found["plans"] = _plans(plans)
    if "variance" in record:
        found["variance"] = {
            key: _errors(value) for key, value in record["variance"].items() if not key.split("; ")[1].startswith("6/4")
        }
    return found


def _state(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "errors": _errors(state["errors"]),
        "groups": {name: {key: interval(state["groups"][name][key]) for key in KEPT} for name in GROUPS},
        "order": {name: interval(state["order"][name]) for name in ORDERS},
        "seeds_in_order": share_above(state["order"][ORDERS[0]], 0.5),
        "activation_ratio": interval(state["activation_ratio"]),
        "agreement_of_roles": interval(state["agreement_of_roles"]),
    }


def _errors(errors: Mapping[str, PerSeed]) -> dict[str, Row | None]:
    return {name: interval(values) for name, values in errors.items()}


def _depth(depth: Mapping[str, Any], *, curves: bool) -> dict[str, Any]:
    bits = depth["bits"]
    found: dict[str, Any] = {"bits": {}, "gap": {}, "noise": {}, "alone": {}}
    needed = {
        "by_error": {name: bits[name]["by_error"] for name in GROUPS},
        "by_noise": {name: crossings(bits[name]["noise"]) for name in GROUPS},
    }
    for key, columns in needed.items():
        found["bits"][key] = {name: interval(values) for name, values in columns.items()}
        for other in ("prevalent", "none"):
            found["gap"][f"{key}: rarer - {other}"] = interval(paired(columns["rarer"], columns[other]))
    at = RATIO_WIDTH - 1
    found["gap"]["log2 of the noises' ratio"] = interval(
        _log2_ratio(bits["rarer"]["noise"][at], bits["prevalent"]["noise"][at])
    )
    if curves:
        for name in ("prevalent", "rarer", "none"):
            found["noise"][name] = [interval(values) for values in bits[name]["noise"]]
    for width in WIDTHS_ALONE:
        found["alone"][width] = {name: interval(depth["alone"][width][name]) for name in ALONE}
    return found


def _plans(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Errors of every rule; the random plans of a seed are one number, their mean."""
    found = {}
    for key, errors in plans.items():
        name = key.rsplit(": ", 1)[-1]
        if name.startswith("random") or not key.startswith((*KEPT_PAIRS, "uniform", "full")):
            continue
        found[key] = {kind: interval(errors[kind]) for kind in ("error", "balanced")}
    for pair in KEPT_PAIRS:
        found[f"{pair}: random"] = {kind: interval(_random(plans, f"{pair}: ", kind)) for kind in ("error", "balanced")}
    return found


def _random(plans: Mapping[str, Any], prefix: str, kind: str) -> list[float | None]:
    columns = [plans[f"{prefix}random {number}"][kind] for number in range(RANDOM_PLANS)]
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


def _against_random(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Balanced error of rules minus that of the random plans of the same seeds."""
    found = {}
    for pair in KEPT_PAIRS:
        prefix = f"{pair}: "
        random = _random(plans, prefix, "balanced")
        for name in DIFFERENCES:
            found[prefix + name] = interval(paired(plans[prefix + name]["balanced"], random))
    return found
