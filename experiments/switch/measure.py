"""Measures what is missing: every plan and every expert alone, kept line by line so that a stopped run can go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from moesaic.records import Scores

from .models import TEST_SEED, Run, generate, item_losses, open_finetuned
from .observe import Moments, expert_layers, expert_stats, moments, observe
from .quantizers import Plan, Rounded, stored_bits
from .rules import allocations, open_weights, rules
from .settings import Table
from .task import even_sample, held_out_pairs, rouge2

Line = dict[str, Any]


class Lines:
    """Finished measurements by key, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[str, Line]()
        if path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # a line that a kill tore
                    break
                self.found[line["key"]] = line
            path.write_text("".join(json.dumps(line) + "\n" for line in self.found.values()), encoding="utf-8")

    def ensure(self, key: str, work: Callable[[], Line]) -> Line:
        """The line of this key, measured now if it is not there yet."""
        if key not in self.found:
            begun = time.monotonic()
            self.found[key] = {"key": key, **work()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.found[key]) + "\n")
            print(f"{key}: {time.monotonic() - begun:.1f} s", flush=True)
        return self.found[key]


@dataclass(frozen=True)
class Measured:
    """One fine-tuned model: its sentences, its scores, and its lines."""

    run: Run
    seed: int
    lines: Lines

    @cached_property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return self.run.tokenizer

    @cached_property
    def observed(self) -> tuple[Any, dict[str, Moments]]:
        """Statistics and moments on training sentences, of the model in full precision."""
        model = open_finetuned(self.run, self.seed)
        items = even_sample(self.run.items("train"), self.run.settings.counted)
        seen = observe(model, self.tokenizer, items)
        found = {name: moments(module, seen[name]) for name, module in expert_layers(model).items()}
        return expert_stats(seen, found), found

    @cached_property
    def weights(self) -> Any:
        """The export as rules see it."""
        return open_weights(self.run.finetuned(self.seed).export, self.observed[0])

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """Every rule's scores."""
        return {name: rule(self.weights) for name, rule in rules(self.run.settings.random_plans).items()}

    def quality(self, model: PreTrainedModel) -> Line:
        """ROUGE-2 and loss of every test sentence."""
        chosen = self.run.test[: self.run.settings.generated]
        outputs = generate(model, self.tokenizer, chosen, self.run.settings.new_tokens)
        scores = rouge2([pair.target for pair in held_out_pairs(chosen, TEST_SEED)], outputs)
        losses = item_losses(model, self.tokenizer, self.run.test)
        return {"rouge2": [round(each, 3) for each in scores], "loss": [round(each, 5) for each in losses]}

    def ensure(self, table: Table) -> None:
        """Full precision and every plan of a table."""
        self.lines.ensure(f"{self.seed}|full", lambda: self.quality(open_finetuned(self.run, self.seed)))
        plans = {
            f"{self.seed}|{table.quantizer}|{each.key}": each.plan
            for each in allocations(self.weights, self.scores, table)
        }
        if any(key not in self.lines.found for key in plans):
            rounded = Rounded(open_finetuned(self.run, self.seed), table.quantizer, self.observed[1])
            for key, plan in plans.items():
                self._ensure_plan(rounded, key, plan)

    def ensure_truth(self) -> None:
        """Every expert alone at the truth's width."""
        quantizer, width = self.run.settings.truth
        plans: dict[str, Plan] = {}
        for layer, count in self.weights.experts.items():
            for expert in range(count):
                plan = {name: [0] * number for name, number in self.weights.experts.items()}
                plan[layer][expert] = width
                plans[self.truth_key(layer, expert)] = plan
        if any(key not in self.lines.found for key in plans):
            rounded = Rounded(open_finetuned(self.run, self.seed), quantizer, self.observed[1])
            for key, plan in plans.items():
                self._ensure_alone(rounded, key, plan)

    def truth_key(self, layer: str, expert: int) -> str:
        """Key of the line of one expert alone."""
        quantizer, width = self.run.settings.truth
        return f"{self.seed}|{quantizer}|alone at {width}|{layer}|{expert}"

    def _ensure_plan(self, rounded: Rounded, key: str, plan: Plan) -> None:
        def work() -> Line:
            return {"stored": stored_bits(rounded.model, rounded.quantizer, plan), **self.quality(rounded.apply(plan))}

        self.lines.ensure(key, work)

    def _ensure_alone(self, rounded: Rounded, key: str, plan: Plan) -> None:
        def work() -> Line:
            losses = item_losses(rounded.apply(plan), self.tokenizer, self.run.test)
            return {"loss": [round(each, 6) for each in losses]}

        self.lines.ensure(key, work)
