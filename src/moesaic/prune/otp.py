"""OTP: a small trained mask router decides for every token and layer which of the chosen experts run.

Online top-any pruning of MC# (Huang et al. 2025, arXiv 2510.10962): a light network gives a distribution over
candidate masks. At run time the most likely mask is taken: no sampling, no randomness. **Priority is 1 for the places
of that mask, else 0.**

The paper's network is not known; this one is ours. It estimates what every candidate mask costs, as the logarithm of
an error in nats, and takes the mask of least error and price. With x the input of the experts, e_j the expert at
place j, w the weights, and c(m) the rescaled weights of the places that mask m runs:

    f   = [P x / rms(x); w / sum w]                                    what the token is
    h   = silu(U f + sum_j table_j[e_j] + u)
    L_m = slope_m log sum_j (c_j(m) - w_j)^2 + bias_m + sum_j prefer_j[e_j] + V_m h        log error of mask m
    logit_m = -(exp(L_m - cost) + experts of m)                        the full mask has no error

`cost` is the logarithm of the price of a run expert in the same unit; it is the same for every layer and sets the
share. So one training serves every share. Cost at run time: `width x hidden` products a token, some thousandths of an
expert's.
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
_LARGEST = 15.0  # of a log error above the price: beyond, a mask is out of the question anyway


@dataclass(frozen=True)
class Otp:
    """Priority = 1 where the mask router's most likely mask runs the expert.

    Attributes:
        candidates: `"prefixes"`: the first 1, 2, … k places; `"subsets"`: every set of places but the empty one.
        width: numbers that the hidden state is projected to.
        features: what the estimate sees beside the change of the weights: `"all"`: the hidden state, the weights, and
            which experts were chosen; `"both"`: without the experts; the `"weights"` alone or `"hidden"` alone.
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
        """The state before training: the error is the squared change of the weights, whatever the token is."""
        count = len(self.masks(k)) - 1
        seen = {"prefer": torch.zeros(k, experts), "table": torch.zeros(k, experts, 2 * self.width)}
        return {
            **(seen if self.features == "all" else {}),
            "slope": torch.ones(count),
            "bias": torch.zeros(count),
            "project": torch.randn(self.width, hidden, generator=generator) / hidden**0.5,
            "inner": torch.randn(2 * self.width, self.width + k, generator=generator) / (self.width + k) ** 0.5,
            "inner_bias": torch.zeros(2 * self.width),
            "outer": torch.zeros(count, 2 * self.width),
            "cost": torch.zeros(()),
        }

    def logits(self, routed: Routed, state: State) -> Tensor:
        """Unnormalised log probabilities of the candidates. `[tokens, masks]` float32"""
        masks = self.masks(routed.weights.shape[1]).to(routed.hidden.device)
        return priced(self.log_errors(routed, state), state["cost"], masks)

    def log_errors(self, routed: Routed, state: State) -> Tensor:
        """Logarithm of what each candidate but the last, which runs everything, costs. `[tokens, masks - 1]`"""
        masks = self.masks(routed.weights.shape[1]).to(routed.hidden.device)[:-1]
        inner = functional.linear(self._features(routed, state), state["inner"], state["inner_bias"])
        found = state["bias"] + state["slope"] * log_change(routed.weights, masks)
        if self.features == "all":
            for place, (table, prefer) in enumerate(zip(state["table"], state["prefer"], strict=True)):
                inner = inner + functional.embedding(routed.experts[:, place], table)
                found = found + prefer[routed.experts[:, place], None]
        return found + functional.linear(functional.silu(inner), state["outer"])

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


def priced(log_errors: Tensor, cost: Tensor | float, masks: Tensor) -> Tensor:
    """Logits of the masks: minus error and experts, both in units of the price `exp(cost)`. `[tokens, masks]`"""
    error = functional.pad((log_errors - cost).clamp(max=_LARGEST).exp(), (0, 1))
    return -(error + masks.sum(dim=-1))


def log_change(weights: Tensor, masks: Tensor) -> Tensor:
    """Logarithm of the squared change of the weights under each mask. `[tokens, masks]` float32"""
    wide = weights.float()[:, None]  # (T, 1, k)
    kept = wide * masks
    whole, left = wide.sum(dim=-1, keepdim=True), kept.sum(dim=-1, keepdim=True)
    change = kept * (whole / left.clamp(min=1e-30)) - wide
    return change.square().sum(dim=-1).clamp(min=1e-20).log()


@lru_cache
def _masks(candidates: str, k: int) -> Tensor:
    if candidates == "prefixes":
        return torch.ones(k, k).tril()
    if k > LARGEST_SUBSETS:
        raise ValueError(f"subsets of {k} experts are too many; use prefixes")
    sets = [row for row in product((1.0, 0.0), repeat=k) if any(row)]
    return torch.tensor(sorted(sets, key=sum))
