"""The same number of experts for every token of a layer: fewer where the last places weigh least.

Priority = the layer's mean `w_j / w_1` at place j over the calibration text, **larger = deserves more to run**. All
tokens of a layer are treated alike, so that only shares in steps of `1 / (layers k)` can be reached. Cost: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moesaic.prune._protocol import Routed, State


@dataclass(frozen=True)
class FixedK:
    """Priority = the layer's mean ratio at that place, whatever the token."""

    causal: ClassVar[bool] = True
    by_layer: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("means",)

    def __call__(self, routed: Routed, state: State) -> Tensor:
        """See `Policy`."""
        return state["means"].float().expand(routed.weights.shape)
