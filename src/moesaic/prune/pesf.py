"""Experts rarely chosen in a sequence do not run: `n_e / (l k / E)`, **larger = deserves more to run**.

PESF of EAC-MoE (2025, arXiv 2508.01625): in a sequence of l tokens an expert is chosen `l k / E` times on average, and
is dropped for the whole sequence if it was chosen less than alpha times that. The threshold is alpha. Cost: a count.

It looks at the whole sequence and is not causal. In decoding a call holds one token of a sequence, each of whose
experts was chosen once, `E / k` times the average: nothing is skipped there for any `alpha <= E / k`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moesaic.prune._protocol import Routed, State


@dataclass(frozen=True)
class Pesf:
    """Priority = how often the expert was chosen in the sequence, in units of the average expert."""

    causal: ClassVar[bool] = False
    by_layer: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("sequences",)

    def __call__(self, routed: Routed, state: State) -> Tensor:
        """See `Policy`; padding counts for nothing and has priority 0."""
        assert routed.sequences is not None
        real = routed.sequences >= 0
        number = int(routed.sequences.max()) + 1 if bool(real.any()) else 1
        place = routed.sequences.clamp(min=0)[:, None] * routed.count + routed.experts  # (T, k)
        chosen = torch.bincount(place[real].flatten(), minlength=number * routed.count)
        length = torch.bincount(routed.sequences[real], minlength=number)
        average = length.float() * routed.weights.shape[1] / routed.count
        found = chosen[place].float() / average[routed.sequences.clamp(min=0)][:, None].clamp(min=1e-30)
        return found * real[:, None]
