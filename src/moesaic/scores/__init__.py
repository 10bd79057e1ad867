"""Rules: weights or statistics in; out one number per expert, **larger = deserves more bits**, or costs.

A rule is one file with a frozen dataclass, and one line here: in `SCORERS` when it scores, in `COSTS` when it says what
every width costs. Rules combine by wrapping: every rule is there a second time, reordered by MaxVar, as `NAME+max_var`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from moesaic.scores._protocol import CostRule as CostRule
from moesaic.scores._protocol import ModelWeights as ModelWeights
from moesaic.scores._protocol import Scorer as Scorer
from moesaic.scores._protocol import needs_errors as needs_errors
from moesaic.scores._protocol import needs_stats as needs_stats
from moesaic.scores.activation_frequency import ActivationFrequency as ActivationFrequency
from moesaic.scores.alpha_tail import AlphaTail as AlphaTail
from moesaic.scores.alpha_tail import AlphaTailCost as AlphaTailCost
from moesaic.scores.fisher_error import FisherError as FisherError
from moesaic.scores.hessian_trace import HessianTrace as HessianTrace
from moesaic.scores.kurtosis import Kurtosis as Kurtosis
from moesaic.scores.max_var import MaxVar as MaxVar
from moesaic.scores.quant_error import QuantError as QuantError
from moesaic.scores.random import Random as Random
from moesaic.scores.reorder import Reorder as Reorder
from moesaic.scores.reorder import ReorderCosts as ReorderCosts
from moesaic.scores.router_norm import RouterNorm as RouterNorm
from moesaic.scores.routing_weight import RoutingWeight as RoutingWeight
from moesaic.scores.significance import Significance as Significance

SCORERS: dict[str, Callable[[], Scorer]] = {
    "router_norm": RouterNorm,
    "activation_frequency": ActivationFrequency,
    "rarity": partial(ActivationFrequency, rare_first=True),
    "routing_weight": RoutingWeight,
    "significance": Significance,
    "kurtosis": Kurtosis,
    "alpha_tail": AlphaTail,
    "random": Random,
    "max_var": MaxVar,
}
COSTS: dict[str, Callable[[], CostRule]] = {
    "quant_error": QuantError,
    "fisher_error": FisherError,
    "hessian_trace": HessianTrace,
    "alpha_tail": AlphaTailCost,
}


def _reordered(rule: Callable[[], Scorer]) -> Scorer:
    return Reorder(base=rule(), by=MaxVar())


def _reordered_costs(rule: Callable[[], CostRule]) -> CostRule:
    return ReorderCosts(base=rule(), by=MaxVar())


SCORERS |= {f"{name}+max_var": partial(_reordered, rule) for name, rule in SCORERS.items() if name != "max_var"}
COSTS |= {f"{name}+max_var": partial(_reordered_costs, rule) for name, rule in COSTS.items()}
