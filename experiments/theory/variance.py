"""Large variance inside the neurons of some experts, which changes nothing in full precision: what does MaxVar save?

Every neuron of the chosen experts gets a multiple of a random vector orthogonal to all patterns. On noiseless data the
function stays as it is; the grid of these neurons becomes coarser.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import data
from .measure import error_record, per_seed, router_change
from .model import Weights
from .plans import lifted, plan
from .readings import read
from .setting import Setting

EXPERTS = 3  # that are widened
TIMES = 20.0  # their MaxVar over what it was
ZETAS = (1.5, 2.0, 3.0, 5.0)
PAIRS = ((4, 2, 3.0), (5, 3, 4.0), (6, 4, 5.0))


def widened(setting: Setting, frames: Tensor, weights: Weights, victims: Tensor) -> Weights:
    """The same function with wide neurons in the experts `victims` `[seeds, experts]` bool.

    Raises:
        ValueError: the patterns span the whole space, so that nothing is orthogonal to them.
    """
    if setting.dimension <= setting.patterns:
        raise ValueError("no direction is orthogonal to all patterns; the dimension must exceed the patterns")
    draws = data.generators(setting, 6)
    size = weights.experts.shape[1:]
    raw = torch.stack([torch.randn(size, generator=g) for g in draws]).flatten(1, 2)
    outside = (raw - raw @ frames @ frames.transpose(1, 2)).view(weights.experts.shape)
    wanted = (TIMES - 1) * weights.experts.var(dim=3, correction=0)
    outside = outside * (wanted / outside.var(dim=3, correction=0)).sqrt()[..., None]
    return replace(weights, experts=weights.experts + outside * victims[:, :, None, None])


def victims_of(setting: Setting, change: Tensor, where: str) -> Tensor:
    """Which experts are widened: those of the largest router change, of the smallest, or any. `[seeds, experts]`"""
    draws = data.generators(setting, 7)
    keys = {
        "largest change": change,
        "smallest change": -change,
        "random": torch.stack([torch.rand(setting.experts, generator=g) for g in draws]),
    }
    chosen = keys[where].argsort(dim=1, descending=True)[:, :EXPERTS]
    return torch.zeros(change.shape, dtype=torch.bool).scatter(1, chosen, value=True)


def saved_by_max_var(setting: Setting, frames: Tensor, before: Weights, after: Weights) -> dict[str, Any]:
    """Errors with and without the reordering, by where the variance sits."""
    change = router_change(before, after)
    found: dict[str, Any] = {}
    for where in ("largest change", "random", "smallest change"):
        victims = victims_of(setting, change, where)
        wide = widened(setting, frames, after, victims)
        readings = read(setting, frames, wide)
        spread = wide.experts.var(dim=3, correction=0).amax(dim=2)
        rules = {"small change": -change, "MaxVar alone": spread}
        rules |= {f"small change + MaxVar, zeta {zeta:g}": lifted(-change, spread, zeta) for zeta in ZETAS}
        for high, low, average in PAIRS:
            for name, values in rules.items():
                bits = plan(values, high, low, average)
                record = error_record(readings, bits)
                record["wide_high"] = per_seed(((bits == high) & victims).sum(dim=1).float())
                found[f"{where}; {high}/{low} at {average:g}: {name}"] = record
        found[f"{where}; full"] = error_record(readings, torch.zeros(change.shape, dtype=torch.int64))
    return found
