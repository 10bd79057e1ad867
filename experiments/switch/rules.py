"""The rules of the table and their plans: the package's own rules, on the export and on counted statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from moesaic.allocate.two_level import TwoLevel
from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.weights import CheckpointWeights, InitialRouters
from moesaic.records import Budget, ExpertStats, Scores
from moesaic.scores import ActivationFrequency, MaxVar, ModelWeights, Random, Reorder, RouterNorm, RoutingWeight, Scorer

from .settings import Table

ZETA = 3.0


@dataclass(frozen=True)
class Reversed:
    """Minus another rule's score: its last experts first."""

    base: Scorer

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert."""
        scores = self.base(weights)
        layers = {layer: tuple(-value for value in values) for layer, values in scores.layers.items()}
        return replace(scores, rule=f"{scores.rule}, reversed", layers=layers)


BASES: dict[str, Scorer] = {
    "activation frequency": ActivationFrequency(),
    "activation frequency, reversed": ActivationFrequency(rare_first=True),
    "routing weight": RoutingWeight(),
    "router norm": RouterNorm(use_initial=False),
    "router-norm change": RouterNorm(),
}
# Beside those of the paper: is it the direction that counts, and what does MaxVar do by itself?
OTHERS: dict[str, Scorer] = {"router-norm change, reversed": Reversed(RouterNorm()), "MaxVar alone": MaxVar()}
UNIFORM, RANDOM, WITH_MAX_VAR = "uniform", "random", " + MaxVar"


def rules(random_plans: int) -> dict[str, Scorer]:
    """Every rule that ranks experts, by the name it has in records. Random ones are numbered."""
    found: dict[str, Scorer] = {}
    for name, rule in BASES.items():
        found[name] = rule
        found[name + WITH_MAX_VAR] = Reorder(base=rule, by=MaxVar(), zeta=ZETA)
    found |= OTHERS
    found |= {f"{RANDOM} {seed}": Random(seed=seed) for seed in range(random_plans)}
    return found


def open_weights(export: Path, stats: ExpertStats) -> CheckpointWeights:
    """An exported model with the routers that its fine-tuning began with."""
    initial = InitialRouters.open(export / "initial_routers.safetensors")
    return CheckpointWeights(Checkpoint.open(export), initial, stats)


@dataclass(frozen=True)
class Allocation:
    """One line of the table before it is measured: widths that a rule gives at an average."""

    rule: str
    bits: float
    plan: dict[str, tuple[int, ...]]

    @property
    def key(self) -> str:
        """The same for the same widths, whatever rule gave them."""
        return "|".join("".join(map(str, widths)) for widths in self.plan.values())


def allocations(weights: CheckpointWeights, scores: dict[str, Scores], table: Table) -> Iterator[Allocation]:
    """All lines of one model: uniform where an average is a width, the rules where it is not."""
    shapes = [weights.shape(layer) for layer in weights.experts]
    for bits in table.bits:
        if bits in table.levels:
            plan = {layer: (int(bits),) * count for layer, count in weights.experts.items()}
            yield Allocation(UNIFORM, bits, plan)
            continue
        for name, found in scores.items():
            layers = TwoLevel(levels=table.levels)(shapes, Budget(bits), found).layers
            yield Allocation(name, bits, {layer: widths.down for layer, widths in layers.items()})


def lifted(scores: Scores) -> int:
    """How many experts MaxVar moved to the front; 0 for rules without it."""
    return sum(scores.details.get("lifted", {}).values())
