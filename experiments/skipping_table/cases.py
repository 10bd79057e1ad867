"""What is measured: every policy at every share, and the designs of otp at one share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moesaic.fit.mask_routers import Training
from moesaic.prune import POLICIES, Policy

RULES = ("threshold", "odp", "top_p", "fixed_k", "pesf")
SHARES = (0.8, 0.7, 0.9, 0.6, 0.95, 0.51)  # the bar first, so that an interrupted run has it
WHOLE = {"layer_steps": 0}  # trained through the whole model alone
DESIGNS: dict[str, dict[str, dict[str, Any]]] = {  # what is behind the defaults of otp: one change each
    "without the chosen experts": {"knobs": {"features": "both"}},
    "weights alone": {"knobs": {"features": "weights"}},
    "hidden alone": {"knobs": {"features": "hidden"}},
    "subsets": {"knobs": {"candidates": "subsets"}},
    "expected error at the share": {"training": {"loss": "expected"}},
    "output error": {"training": {"metric": "output"}},
    "whole model": {"training": WHOLE},
    "soft masks": {"training": {**WHOLE, "estimator": "soft"}},
    "constant temperature": {"training": {**WHOLE, "hot": 1.0, "cold": 1.0}},
    "cold start": {"training": {**WHOLE, "warm_start": False}},
    "layers, then whole model": {"training": {}},
}
FINISHED = ("layers, then whole model",)  # designs that take both kinds of steps


@dataclass(frozen=True)
class Case:
    """One row to measure.

    Attributes:
        name: of the policy, with the design of otp after a comma.
        policy: ready made.
        target: share asked for.
        training: how mask routers are trained; None for a rule.
    """

    name: str
    policy: Policy
    target: float
    training: Training | None = None
    knobs: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Of the row among those of one model."""
        return f"{self.name}@{self.target:.4f}"


def cases(
    policies: Sequence[str], shares: Sequence[float], training: Training, *, layers: int, top_k: int
) -> Iterator[Case]:
    """Every policy at every share, share by share. `fixed_k` runs the steps that it can make around each."""
    for share in shares:
        if share * top_k <= 1:
            continue
        for name in policies:
            if name == "otp":
                yield Case(name, POLICIES[name](), share, training)
            elif name == "fixed_k":
                for step in steps_around(share, layers * top_k, least=layers):
                    yield Case(name, POLICIES[name](), step)
            else:
                yield Case(name, POLICIES[name](), share)


def steps_around(share: float, places: int, *, least: int) -> list[float]:
    """The two nearest shares of whole places, or the one that it is."""
    low, high = math.floor(share * places + 1e-9), math.ceil(share * places - 1e-9)
    return [count / places for count in dict.fromkeys((low, high)) if least < count <= places]


def designs(names: Sequence[str], share: float, training: Training, *, steps: int, top_k: int) -> Iterator[Case]:
    """The designs of otp at one share; those that train through the whole model take `steps` steps."""
    for name in names:
        if name == "subsets" and top_k == 2:  # the third subset, the second place alone, is never worth it
            continue
        changes = DESIGNS[name]
        own = replace(training, **changes.get("training", {}))
        if not own.layer_steps or name in FINISHED:
            own = replace(own, steps=steps)
        yield Case(f"otp, {name}", POLICIES["otp"](**changes.get("knobs", {})), share, own)
