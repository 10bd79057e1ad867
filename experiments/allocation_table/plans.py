"""From rules and budgets to plans. Many rules come to the same plan, which is then measured once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic import CompressOptions
from moesaic.allocate import needs_scores
from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import BudgetInfeasible
from moesaic.pipeline import measure, open_calibration, score
from moesaic.records import BitPlan, Budget, CostTable, Scores

from .cases import LEVELS, Rule


@dataclass(frozen=True)
class Planned:
    """A rule's plan at a budget.

    Attributes:
        rule: its name.
        bits: the budget, code bits.
        plan: what the rule's allocator made of it.
        key: identifies the widths, whatever rule they came from.
    """

    rule: str
    bits: float
    plan: BitPlan
    key: str


def plan_key(plan: BitPlan) -> str:
    """A short hash of the widths of a plan, and of nothing else."""
    widths = {name: [bits.gate_up, bits.down] for name, bits in plan.layers.items()}
    return hashlib.sha256(json.dumps(widths, sort_keys=True).encode()).hexdigest()[:12]


class Planner:
    """Scores a model by every rule once, then allocates for any budget.

    Attributes:
        checkpoint: the model.
        stats: file of calibration statistics.
        text: options of `CompressOptions` that name the calibration text.
    """

    def __init__(self, folder: Path, stats: Path, text: Mapping[str, Any]) -> None:
        self.checkpoint, self.stats, self.text = Checkpoint.open(folder), stats, text
        self._scores: dict[str, Scores | CostTable | None] = {}

    def plans(self, rules: list[Rule], budgets: tuple[float, ...]) -> Iterator[Planned]:
        """Every rule at every budget, budget by budget; a rule that cannot meet one (uniform 2.5) is left out."""
        shapes = [layer.shape for layer in self.checkpoint.layers]
        for bits in budgets:
            for rule in rules:
                allocator = self._options(rule, bits).make_allocator(**rule.knobs)
                try:
                    plan = allocator(shapes, Budget(bits), self.scores(rule))
                except BudgetInfeasible:
                    continue
                yield Planned(rule.name, bits, plan, plan_key(plan))

    def scores(self, rule: Rule) -> Scores | CostTable | None:
        """What a rule says of the model; None for one that asks nothing."""
        key = json.dumps(rule.options, sort_keys=True, default=str)
        if key not in self._scores:
            options = self._options(rule, 2.5)
            if needs_scores(options.make_allocator()):
                calibration = open_calibration(self.checkpoint, options, self.stats.parent)
                self._scores[key] = score(self.checkpoint, options, measure(calibration, options))
            else:
                self._scores[key] = None
        return self._scores[key]

    def _options(self, rule: Rule, bits: float) -> CompressOptions:
        levels = None if rule.options.get("allocator") == "uniform" else LEVELS
        return CompressOptions(bits=bits, levels=levels, stats=self.stats, **rule.options, **self.text)
