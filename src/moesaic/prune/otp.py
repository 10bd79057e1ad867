"""OTP: a small trained mask router decides for every token and layer which of the chosen experts run.

Online top-any pruning of MC# (Huang et al. 2025, arXiv 2510.10962): a light network gives a distribution over
candidate masks, trained with Gumbel-Softmax against the unpruned packed model (`fit.mask_routers`). At run time the
most likely mask is taken: no sampling, no randomness. **Priority is 1 for the places of that mask, else 0.**

The paper's network is not known; this one is ours. With `r_j = w_j / w_1`, x the input of the experts and C the masks:

    a_j = slope_j (log r_j - log offset_j) + prefer[e_j]      one score a place: the ratio rule, made trainable
    f = [P x / rms(x); w / sum w]                             what the token is
    h = silu(U f + sum_j table_j[e_j] + u)                    e_j: the expert at place j
    logits = C (a - cost) + V h + v                           cost: the same for every layer, sets the share

Cost: `width x hidden` products a token, some thousandths of an expert's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.prune._protocol import Routed, State

CANDIDATES = ("prefixes", "subsets")
FEATURES = ("all", "both", "weights", "hidden")
LARGEST_SUBSETS = 8  # experts a token; 255 masks


@dataclass(frozen=True)
class Otp:
    """Priority = 1 where the mask router's most likely mask runs the expert.

    Attributes:
        candidates: `"prefixes"`: the first 1, 2, … k places; `"subsets"`: every set of places but the empty one.
        width: numbers that the hidden state is projected to.
        features: what the correction to the ratio rule sees: `"all"`: the hidden state, the weights, and which experts
            were chosen; `"both"`: without the experts; the `"weights"` alone or `"hidden"` alone.
    """

    candidates: str = "prefixes"
    width: int = 16
    features: str = "all"
    causal: ClassVar[bool] = True
    by_layer: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("training",)

    def __post_init__(self) -> None:
        if self.candidates not in CANDIDATES:
            raise ValueError(f"candidates is {self.candidates!r}; give one of {CANDIDATES}")
        if self.features not in FEATURES:
            raise ValueError(f"features is {self.features!r}; give one of {FEATURES}")
        if self.width < 1:
            raise ValueError(f"width is {self.width}; give 1 or more")

    def __call__(self, routed: Routed, state: State) -> Tensor:
        """See `Policy`."""
        masks = self.masks(routed.weights.shape[1]).to(routed.hidden.device)
        return masks[self.logits(routed, state).argmax(dim=-1)]

    def masks(self, k: int) -> Tensor:
        """The candidates, fewest experts first. `[masks, k]` float32

        Raises:
            ValueError: subsets of more than 8 places.
        """
        return _masks(self.candidates, k)

    def start(self, k: int, hidden: int, generator: torch.Generator, *, experts: int) -> dict[str, Tensor]:
        """The state before training: the ratio rule at ratio 1/2, and a correction of zero."""
        count = len(self.masks(k))
        seen = {"prefer": torch.zeros(experts), "table": torch.zeros(k, experts, 2 * self.width)}
        return {
            **(seen if self.features == "all" else {}),
            "slope": torch.full((k,), 2.0),
            "offset": torch.full((k,), 0.5).log(),
            "project": torch.randn(self.width, hidden, generator=generator) / hidden**0.5,
            "inner": torch.randn(2 * self.width, self.width + k, generator=generator) / (self.width + k) ** 0.5,
            "inner_bias": torch.zeros(2 * self.width),
            "outer": torch.zeros(count, 2 * self.width),
            "outer_bias": torch.zeros(count),
            "cost": torch.zeros(()),
        }

    def logits(self, routed: Routed, state: State) -> Tensor:
        """Unnormalised log probabilities of the candidates. `[tokens, masks]` float32"""
        masks = self.masks(routed.weights.shape[1]).to(routed.hidden.device)
        place = state["slope"] * (routed.ratio.clamp(min=1e-6).log() - state["offset"])  # (T, k)
        inner = functional.linear(self._features(routed, state), state["inner"], state["inner_bias"])
        if self.features == "all":
            place = place + state["prefer"][routed.experts]
            for number, table in enumerate(state["table"]):
                inner = inner + functional.embedding(routed.experts[:, number], table)
        correction = functional.linear(functional.silu(inner), state["outer"], state["outer_bias"])
        return correction + functional.linear(place - state["cost"], masks)

    def _features(self, routed: Routed, state: State) -> Tensor:
        """`[tokens, width + k]`; what is not to be seen is zero."""
        hidden, weights = routed.hidden.float(), routed.weights.float()
        rms = hidden.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)
        projected = functional.linear(hidden, state["project"]) / rms
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        if self.features == "weights":
            projected = torch.zeros_like(projected)
        if self.features == "hidden":
            weights = torch.zeros_like(weights)
        return torch.cat([projected, weights], dim=-1)


@lru_cache
def _masks(candidates: str, k: int) -> Tensor:
    if candidates == "prefixes":
        return torch.ones(k, k).tril()
    if k > LARGEST_SUBSETS:
        raise ValueError(f"subsets of {k} experts are too many; use prefixes")
    sets = [row for row in product((1.0, 0.0), repeat=k) if any(row)]
    return torch.tensor(sorted(sets, key=sum))
