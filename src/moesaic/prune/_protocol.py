"""What every skipping policy looks like, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

State = Mapping[str, Tensor]  # what calibration or training left for one layer


@dataclass(frozen=True)
class Routed:
    """What the router of a layer with `E` experts chose for some tokens; the places of a token are sorted by weight.

    Attributes:
        weights: `[tokens, k]`, largest first, as the architecture would apply them.
        experts: `[tokens, k]` int64, the expert at each place.
        hidden: `[tokens, hidden]`, the input of the experts.
        count: `E`.
        sequences: `[tokens]` int64, which sequence of the batch a token belongs to, -1 for padding; None where the
            policy does not ask for it.
        significance: `[tokens]`, see `odp`; None where the policy does not ask for it, and in decoding.
    """

    weights: Tensor
    experts: Tensor
    hidden: Tensor
    count: int
    sequences: Tensor | None = None
    significance: Tensor | None = None

    @property
    def ratio(self) -> Tensor:
        """Every weight over the token's largest; 1 at the first place. `[tokens, k]` float32"""
        weights = self.weights.float()
        return weights / weights[:, :1].clamp(min=1e-30)


class Policy(Protocol):
    """Says how much every chosen expert of every token deserves to run.

    Those whose priority reaches the threshold run, and a token without any keeps its first: see `decide`.

    Attributes:
        causal: the decision for a token depends on nothing but that token and what came before it.
        by_layer: every layer has a threshold of its own, set for the same share in each; else one for all.
        needs: what it wants beside the routing: `"sequences"`, `"attention"` (gives `significance`), `"means"`
            (the layer's mean ratio at every place, in the state), `"training"` (a state that is trained).
    """

    causal: ClassVar[bool]
    by_layer: ClassVar[bool]
    needs: ClassVar[tuple[str, ...]]

    def __call__(self, routed: Routed, state: State) -> Tensor:
        """Priority of every place; **larger = deserves more to run**. `[tokens, k]` float32"""
        ...
