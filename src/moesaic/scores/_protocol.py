"""What every scoring rule looks like, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from moesaic.records import Scores


class ModelWeights(Protocol):
    """The weights of a model as rules ask for them. A rule that asks for little makes the caller read little.

    `Checkpoint` is wired to this by `pipeline`; a test can pass tensors it made up.
    """

    @property
    def experts(self) -> Mapping[str, int]:
        """Expert layers in order, with their number of experts."""

    def router(self, layer: str) -> Tensor:
        """The router's weight. `[experts, hidden]` float32"""

    def initial_router(self, layer: str) -> Tensor | None:
        """The router's weight before training, None when it is not known. `[experts, hidden]` float32"""

    def first_layer(self, layer: str, expert: int) -> Tensor:
        """W1 of one expert. `[intermediate, hidden]`, any float dtype"""


class Scorer(Protocol):
    """A rule that says which experts deserve more bits."""

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; **larger = deserves more bits**."""
        ...
