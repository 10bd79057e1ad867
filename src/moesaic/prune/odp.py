"""ODP: the ratio rule with a threshold a layer, and tokens that are never pruned.

    run the expert at place j  if  w_j / w_1 >= mu_layer  or the token is protected
    I_t = ||x_t||_1 * (sum over queries i >= t of A_{i,t}) / (number of those queries)

mu is a quantile of the ratios on calibration text, the median in the paper (Huang et al., *MC*, ICLR 2025, arXiv
2410.06270); **larger = deserves more to run**. A is the attention of the layer, averaged over heads, so that the sum
is the attention that the token receives: the paper's formula. (The released code sums over the keys instead, which
gives 1 for every token.) x is the input of the experts. The top 2 % of a sequence's tokens are protected.

For k > 2 the paper says nothing; here all places after the first share the layer's mu, and the ratios of all of them
make up its quantile. Cost: attention maps in prefill, hence eager attention; in decoding nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moesaic.prune._protocol import Routed, State


@dataclass(frozen=True)
class Odp:
    """Priority = the weight over the token's largest; infinite for protected tokens.

    Attributes:
        protect: share of the tokens of a sequence that keep all experts; 0 does without attention maps.
    """

    protect: float = 0.02
    causal: ClassVar[bool] = False
    by_layer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.protect < 1:
            raise ValueError(f"protect is {self.protect}; give a share of the tokens from 0 to below 1")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Attention maps, unless no token is protected."""
        return ("sequences", "attention") if self.protect else ()

    def __call__(self, routed: Routed, state: State) -> Tensor:
        """See `Policy`."""
        if routed.significance is None or not self.protect:
            return routed.ratio
        return torch.where(self.protected(routed)[:, None], torch.inf, routed.ratio)

    def protected(self, routed: Routed) -> Tensor:
        """The tokens of highest significance of each sequence, rounded up to whole tokens. `[tokens]` bool"""
        assert routed.sequences is not None
        assert routed.significance is not None
        found = torch.zeros_like(routed.sequences, dtype=torch.bool)
        for sequence in range(int(routed.sequences.max()) + 1):
            inside = torch.where(routed.sequences == sequence)[0]
            number = math.ceil(self.protect * len(inside))
            found[inside[routed.significance[inside].topk(number).indices]] = True
        return found
