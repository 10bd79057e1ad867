"""The smallest set that reaches a share of the routing mass: `1 - sum_{i<j} w_i / sum_i w_i`, **larger = run**.

The expert at place j runs if those before it have not yet gathered the mass p; the threshold on the priority is
`1 - p`. As in nucleus sampling, and in Huang et al. (2024, arXiv 2403.07652) for experts. Cost: a sum over the places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moesaic.prune._protocol import Routed, State


@dataclass(frozen=True)
class TopP:
    """Priority = the routing mass that the places before it have left."""

    causal: ClassVar[bool] = True
    by_layer: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, routed: Routed, state: State) -> Tensor:
        """See `Policy`."""
        mass = routed.weights.float()
        mass = mass / mass.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        return 1 - (mass.cumsum(dim=-1) - mass)
