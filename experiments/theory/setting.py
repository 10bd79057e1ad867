"""One setting of the analysed model: every number that decides a run.

Which of them are the paper's and which are ours is in README.md; `cases.py` varies ours.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

LOSS_NAMES = ("hinge", "logistic", "linear")


@dataclass(frozen=True)
class Setting:
    """A data distribution, a model, a way to train it, and the seeds.

    Attributes:
        a: share of sequences with the rarer task-relevant token.
        tokens: tokens of a sequence, n.
        patterns: orthonormal patterns P, the task-relevant ones first.
        dimension: dimension d of a token; the patterns are a random orthonormal frame in it (d >= P).
        features: task-relevant patterns: 2 (one a label), or 4 (a prevalent and a rarer one for each label).
        noise: standard deviation of Gaussian noise on every coordinate of a token, within the span of the patterns.
        experts: number of experts E; half have output sign +1.
        neurons: hidden neurons m of an expert.
        chosen: tokens l that an expert takes.
        init: standard deviation of the experts' initial weights.
        spread: standard deviation of the experts' weights across the directions that no pattern has. Training leaves
            them alone; they decide the range of a neuron's weights, and so the step of its grid.
        router_init: standard deviation of the router's initial weights.
        steps: SGD steps.
        batch: sequences a step.
        rate: learning rate of the experts.
        router_rate: learning rate of the router.
        loss: one of `LOSS_NAMES`; "linear" is minus the margin, which no margin satisfies.
        balanced: draw both features equally often in training.
        axis_aligned: the patterns are coordinate axes instead of a random frame.
        seeds: number of seeds; the first is 0.
    """

    a: float = 0.1
    tokens: int = 8
    patterns: int = 128
    dimension: int = 256
    features: int = 2
    noise: float = 0.0
    experts: int = 16
    neurons: int = 8
    chosen: int = 2
    init: float = 0.01
    spread: float = 0.2
    router_init: float = 0.01
    steps: int = 400
    batch: int = 32
    rate: float = 0.2
    router_rate: float = 0.2
    loss: str = "hinge"
    balanced: bool = False
    axis_aligned: bool = False
    seeds: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.a <= 0.5 or self.features not in (2, 4) or self.loss not in LOSS_NAMES:
            raise ValueError(f"a must be in (0, 0.5], features 2 or 4, loss one of {LOSS_NAMES}; got {self}")
        if self.dimension < self.patterns or self.chosen > self.tokens or self.experts % 2:
            raise ValueError(f"needs dimension >= patterns, chosen <= tokens, an even number of experts; got {self}")

    @property
    def key(self) -> str:
        """Names the setting in files of finished work."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
