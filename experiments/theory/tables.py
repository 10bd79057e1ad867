"""The record as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .summary import KEPT_PAIRS

Case = Mapping[str, Any]
MOMENTS = ("learnt", "end")


def markdown(record: Mapping[str, Any]) -> str:
    """All tables."""
    cases = record["cases"]
    sweep = [case for case in cases if not case["change"]]
    parts = ["## What experts learned\n", _table(LEARNED, map(_learned_row, _moments(sweep)))]
    parts += ["## Bits that a group needs\n", _table(NEEDED, map(_needed_row, _moments(sweep)))]
    for case in (case for case in sweep if "plans" in case):
        parts += [f"## Balanced error at equal average bits, {case['case']}\n", _plans(case)]
    for case in (case for case in cases if "variance" in case):
        parts += [f"## Injected variance, {case['case']}\n", _variance(case)]
    parts += ["## What survives which assumption\n", _table(SURVIVES, map(_survival_row, _varied(cases)))]
    return "\n".join(parts)


LEARNED = (
    "case, moment (step)",
    "balanced error",
    "experts p / r / both / none",
    "1000 Λ prevalent",
    "1000 Λ rarer",
    "1000 Λ none",
    "P(Λ p > r)",
    "P(Λ r > none)",
    "activation p",
    "activation r",
    "ratio",
    "(1-a)/a",
)
NEEDED = (
    "case, moment (step)",
    "bits p, by error",
    "bits r, by error",
    "bits none, by error",
    "gap r - p",
    "bits p, by noise",
    "bits r, by noise",
    "gap r - p",
    "log2 of noises' ratio, 4 bits",
    "log2((1-a)/a)",
    "2 bits alone: rank correlation with small Λ",
    "the same, learned experts",
)
SURVIVES = (
    "case, moment (step)",
    "1000 Λ p",
    "1000 Λ r",
    "1000 Λ none",
    "P(Λ p > r)",
    "ratio of activation",
    "gap by noise",
    "gap by error",
    "rank correlation, learned",
    "4/2 at 3: small - random",
    "large - random",
    "idle last - random",
)


def number(row: Sequence[float] | None, times: float = 1.0, digits: int = 2) -> str:
    """`mean ± half width`, with the number of seeds where some are missing."""
    if row is None:
        return "-"
    mean, low, high, seeds = row
    few = f" ({seeds:.0f})" if seeds < 20 else ""
    return f"{times * mean:.{digits}f} ± {times * (high - low) / 2:.{digits}f}{few}"


def _moments(cases: Iterable[Case]) -> Iterator[tuple[Case, str]]:
    for case in cases:
        yield case, "learnt"
        if case["learnt"] != case["end"] and case["learnt"] is not None:
            yield case, "end"


def _varied(cases: Sequence[Case]) -> Iterator[tuple[Case, str]]:
    shares = {case["setting"]["a"] for case in cases if case["change"]}
    yield from _moments(
        sorted((case for case in cases if case["setting"]["a"] in shares), key=lambda case: case["track"])
    )


def _name(case: Case, moment: str) -> tuple[str, str]:
    step = case[moment] or case["end"]
    word = "not learnt" if case["learnt"] is None else moment
    return f"{case['case']}; {word} ({step})", str(step)


def _learned_row(at: tuple[Case, str]) -> list[str]:
    case, moment = at
    name, step = _name(case, moment)
    state = case["steps"][step]
    groups = state["groups"]
    a = case["setting"]["a"]
    return [
        name,
        number(state["errors"]["balanced"], digits=3),
        " / ".join(f"{groups[group]['experts'][0]:.1f}" for group in groups),
        *(number(groups[group]["router_change"], 1000) for group in ("prevalent", "rarer", "none")),
        number(state["order"]["router_change: prevalent > rarer"]),
        number(state["order"]["router_change: rarer > none"]),
        *(number(groups[group]["activation"]) for group in ("prevalent", "rarer")),
        number(state["activation_ratio"]),
        f"{(1 - a) / a:.1f}",
    ]


def _needed_row(at: tuple[Case, str]) -> list[str]:
    case, moment = at
    depth = case["at"][moment]
    error, noise, alone = depth["bits"]["by_error"], depth["bits"]["by_noise"], depth["alone"]["2"]
    return [
        _name(case, moment)[0],
        *(number(error[group]) for group in ("prevalent", "rarer", "none")),
        number(depth["gap"]["by_error: rarer - prevalent"]),
        *(number(noise[group]) for group in ("prevalent", "rarer")),
        number(depth["gap"]["by_noise: rarer - prevalent"]),
        number(depth["gap"]["log2 of the noises' ratio"]),
        f"{case['log2_ratio']:.2f}",
        number(alone["rank correlation with small change"]),
        number(alone["the same, experts that learned a feature"]),
    ]


def _survival_row(at: tuple[Case, str]) -> list[str]:
    case, moment = at
    name, step = _name(case, moment)
    state, depth, against = case["steps"][step], case["at"][moment], case["plans_against_random"]
    plans = [
        number(against[f"4/2 at 3: {rule}"], digits=3)
        for rule in ("small change", "large change", "small change, idle experts last")
    ]
    return [
        name,
        *(number(state["groups"][group]["router_change"], 1000) for group in ("prevalent", "rarer", "none")),
        number(state["order"]["router_change: prevalent > rarer"]),
        number(state["activation_ratio"]),
        number(depth["gap"]["by_noise: rarer - prevalent"]),
        number(depth["gap"]["by_error: rarer - prevalent"]),
        number(depth["alone"]["2"]["the same, experts that learned a feature"]),
        *(plans if moment == "learnt" else ["-"] * 3),
    ]


def _plans(case: Case) -> str:
    rules = [key.split(": ", 1)[1] for key in case["plans"] if key.startswith(KEPT_PAIRS[0])]
    rows = [
        [rule, *(number(case["plans"][f"{prefix}: {rule}"]["balanced"], digits=3) for prefix in KEPT_PAIRS)]
        for rule in rules
    ]
    uniform = [
        f"{key}: {number(value['balanced'], digits=3)}" for key, value in case["plans"].items() if ": " not in key
    ]
    return _table(("rule", *KEPT_PAIRS), rows) + "\nThe same bits for all: " + "; ".join(uniform) + "\n"


def _variance(case: Case) -> str:
    rows = [
        [key, number(errors["balanced"], digits=3), f"{errors['wide_high'][0]:.1f}" if "wide_high" in errors else "-"]
        for key, errors in case["variance"].items()
    ]
    return _table(("wide experts; widths: rule", "balanced error", "wide experts with high bits"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
