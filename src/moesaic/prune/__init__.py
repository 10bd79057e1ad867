"""Policies that say, while the model runs, which of the router's chosen experts a token needs.

A policy is one file with a frozen dataclass, and one line here. What calibration or training found out for it is in
a `Pruning`; `runtime.skipping` puts it to work in a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moesaic.prune._protocol import Policy as Policy
from moesaic.prune._protocol import Routed as Routed
from moesaic.prune._protocol import State as State
from moesaic.prune.fixed_k import FixedK as FixedK
from moesaic.prune.odp import Odp as Odp
from moesaic.prune.otp import Otp as Otp
from moesaic.prune.pesf import Pesf as Pesf
from moesaic.prune.state import Pruning as Pruning
from moesaic.prune.threshold import Threshold as Threshold
from moesaic.prune.top_p import TopP as TopP

POLICIES: dict[str, Callable[..., Any]] = {
    "otp": Otp,
    "odp": Odp,
    "threshold": Threshold,
    "top_p": TopP,
    "fixed_k": FixedK,
    "pesf": Pesf,
}
