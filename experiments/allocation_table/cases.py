"""What the table compares: rules, budgets and quantizers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

BITS = (1.75, 2.0, 2.25, 2.5, 3.0)  # code bits; groups of one size without zero points, so equal bits are equal bytes
QUICK_BITS = (2.0, 2.5)
LEVELS = (1, 2, 3)
QUANTIZERS = ("rtn", "hqq", "gptq")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Rule:
    """A way to a plan.

    Attributes:
        name: for people and records.
        options: of `CompressOptions`.
        knobs: fields of the allocator, for those that the options do not have.
    """

    name: str
    options: dict[str, Any]
    knobs: dict[str, Any] = field(default_factory=dict)


def rules(initial: Path | None) -> list[Rule]:
    """All rules; those that need the routers before training only where they are known."""
    found = [
        Rule("activation frequency", {"rule": "activation_frequency"}),
        Rule("activation frequency, reversed", {"rule": "rarity"}),
        Rule("routing weight", {"rule": "routing_weight"}),
        Rule("frequency x routing weight", {"rule": "significance"}),
        Rule("Hessian trace, global", {"rule": "hessian_trace", "allocator": "global"}),
        Rule("PMQ, released form", {"rule": "quant_error", "allocator": "pmq"}, {"form": "released"}),
        Rule("PMQ, paper form", {"rule": "quant_error", "allocator": "pmq"}, {"form": "paper"}),
        Rule("GEMQ-style global", {"rule": "fisher_error", "allocator": "global"}),
        Rule("AlphaQ", {"rule": "alpha_tail", "allocator": "global"}),
        Rule("router norm", {"rule": "router_norm"}),
    ]
    if initial is not None:
        found.append(Rule("router-norm change", {"rule": "router_norm", "initial": initial}))
    return [
        Rule("uniform", {"allocator": "uniform"}),
        *(Rule(f"random, seed {seed}", {"rule": "random", "seed": seed}) for seed in SEEDS),
        *(each for rule in found for each in (rule, with_max_var(rule))),
        Rule("MaxVar alone", {"rule": "max_var"}),
        Rule("kurtosis", {"rule": "kurtosis"}),
    ]


def with_max_var(rule: Rule) -> Rule:
    """The same rule, its ranking reordered by MaxVar."""
    options = {**rule.options, "rule": f"{rule.options['rule']}+max_var"}
    return replace(rule, name=f"{rule.name} + MaxVar", options=options)
