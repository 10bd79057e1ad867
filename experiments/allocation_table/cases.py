"""The cases of the table: rules, budgets and quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moesaic import CompressOptions

BITS = (1.75, 2.0, 2.25, 2.5, 3.0)
BPW = (2.0, 2.5)  # the same at equal stored bytes, which counts what differs in scales
QUANTIZERS = ("rtn", "hqq", "gptq")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Rule:
    """A way to a plan.

    Attributes:
        name: for people and records.
        options: of `CompressOptions`.
        allocator_knobs: fields of the allocator, for those that the options do not have.
    """

    name: str
    options: dict[str, Any]
    form: str | None = None


def rules(initial: Path | None) -> list[Rule]:
    """All rules; those that need the routers before training only where they are known."""
    found = [
        Rule("activation frequency", {"rule": "activation_frequency"}),
        Rule("activation frequency, reversed", {"rule": "rarity"}),
        Rule("routing weight", {"rule": "routing_weight"}),
        Rule("Hessian trace, global", {"rule": "hessian_trace", "allocator": "global"}),
        Rule("PMQ, released form", {"rule": "quant_error", "allocator": "pmq"}, "released"),
        Rule("PMQ, paper form", {"rule": "quant_error", "allocator": "pmq"}, "paper"),
        Rule("GEMQ-style global", {"rule": "fisher_error", "allocator": "global"}),
        Rule("AlphaQ", {"rule": "alpha_tail", "allocator": "global"}),
        Rule("router norm", {"rule": "router_norm"}),
    ]
    if initial is not None:
        found.append(Rule("router-norm change", {"rule": "router_norm", "initial": initial}))
    return [
        Rule("uniform", {"allocator": "uniform"}),
        *(Rule(f"random, seed {seed}", {"rule": "random", "seed": seed}) for seed in SEEDS),
        *(each for rule in found for each in (rule, _with_max_var(rule))),
        Rule("MaxVar alone", {"rule": "max_var"}),
    ]


def _with_max_var(rule: Rule) -> Rule:
    options = {**rule.options, "rule": f"{rule.options['rule']}+max_var"}
    return replace(rule, name=f"{rule.name} + MaxVar", options=options)


@dataclass(frozen=True)
class Case:
    """One line of the table before it is measured."""

    rule: Rule
    quantizer: str
    measure: str  # "bits" or "bpw"
    budget: float

    @property
    def key(self) -> str:
        """Identifies it among the records."""
        return f"{self.quantizer}|{self.measure} {self.budget:g}|{self.rule.name}"

    def options(self, stats: Path, text: dict[str, Any]) -> CompressOptions:
        """What `compress` is asked for."""
        return CompressOptions(
            **{self.measure: self.budget},
            **self.rule.options,
            levels=None if self.rule.options.get("allocator") == "uniform" else (1, 2, 3),
            quantizer=self.quantizer,
            stats=stats,
            **text,
        )


def cases(initial: Path | None, *, quick: bool) -> Iterator[Case]:
    """All cases, budget by budget so that an unfinished table has whole rows."""
    budgets = [("bits", 2.0), ("bits", 2.5)] if quick else [("bits", b) for b in BITS] + [("bpw", b) for b in BPW]
    for quantizer in ("rtn",) if quick else QUANTIZERS:
        for measure, budget in budgets:
            for rule in rules(initial):
                if rule.name == "uniform" and (measure == "bpw" or budget != int(budget)):
                    continue
                yield Case(rule, quantizer, measure, budget)
