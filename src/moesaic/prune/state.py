"""The noun of run-time skipping: a policy with what was found out for every layer. File form: `docs/format.md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from moesaic.prune._protocol import Policy


@dataclass(frozen=True)
class Pruning:
    """A policy that is ready to run in one model.

    Attributes:
        name: of the policy, in `POLICIES`.
        policy: with its knobs.
        top_k: experts that the router chooses for a token.
        target: share of the expert activations that was asked for.
        reached: the share that ran on the calibration text.
        layers: layer name -> its state; float32 tensors, `threshold` in each.
        details: how it was calibrated or trained, for people.
    """

    name: str
    policy: Policy
    top_k: int
    target: float
    reached: float
    layers: Mapping[str, Mapping[str, Tensor]]
    details: Mapping[str, Any] = field(default_factory=dict)
