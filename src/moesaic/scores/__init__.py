"""Scoring rules: weights (later: statistics) in, one number per expert out, **larger = deserves more bits**.

A rule is one file with a frozen dataclass, and one line here. Rules combine by wrapping, as `Reorder` does.
"""

from __future__ import annotations

from collections.abc import Callable

from moesaic.scores._protocol import ModelWeights as ModelWeights
from moesaic.scores._protocol import Scorer as Scorer
from moesaic.scores.max_var import MaxVar as MaxVar
from moesaic.scores.random import Random as Random
from moesaic.scores.reorder import Reorder as Reorder
from moesaic.scores.router_norm import RouterNorm as RouterNorm

SCORERS: dict[str, Callable[[], Scorer]] = {
    "router_norm": RouterNorm,
    "max_var": MaxVar,
    "router_norm+max_var": lambda: Reorder(base=RouterNorm(), by=MaxVar()),
    "random": Random,
}
