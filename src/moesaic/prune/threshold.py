"""One ratio for all layers: `r_j = w_j / w_1`, **larger = deserves more to run**.

The expert at place j runs if its weight is at least a fixed fraction of the token's largest. With k = 2 this is the
rule of Lu et al. (2024, arXiv 2402.14800) with one ratio in place of one a layer. Cost: a division.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moesaic.prune._protocol import Routed, State


@dataclass(frozen=True)
class Threshold:
    """Priority = the weight over the token's largest."""

    causal: ClassVar[bool] = True
    by_layer: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, routed: Routed, state: State) -> Tensor:
        """See `Policy`."""
        return routed.ratio
