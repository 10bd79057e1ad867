"""What every scoring rule and every cost rule looks like, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from moesaic.records import CostTable, ExpertStats, ExpertWeights, LayerShape, Scores


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

    def expert(self, layer: str, expert: int) -> ExpertWeights:
        """All matrices of one expert, `[out, in]`, any float dtype."""

    def shape(self, layer: str) -> LayerShape:
        """Sizes of a layer; nothing is read."""

    @property
    def stats(self) -> ExpertStats:
        """What a calibration run learned of the model.

        Raises:
            UsageError: there was none; says the remedy.
        """


class Scorer(Protocol):
    """A rule that says which experts deserve more bits.

    One that reads `weights.stats` has the attribute `needs_stats = True`.
    """

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; **larger = deserves more bits**."""
        ...


class CostRule(Protocol):
    """A rule that says what every expert costs at every width.

    One that reads `weights.stats` has the attribute `needs_stats = True`, and names in `needs_errors` the fields of
    `LayerStats` that have to be measured for it.
    """

    def __call__(self, weights: ModelWeights) -> CostTable:
        """Work out every cost; **smaller = better**."""
        ...


def needs_stats(rule: object) -> bool:
    """Whether a rule reads calibration statistics."""
    return bool(getattr(rule, "needs_stats", False))


def needs_errors(rule: object) -> tuple[str, ...]:
    """Fields of `LayerStats` that calibration has to measure for a rule, such as `("output_error",)`."""
    return tuple(getattr(rule, "needs_errors", ()))
