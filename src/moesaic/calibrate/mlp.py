"""One expert as float32 matrices, and what it makes of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from moesaic.records import ExpertWeights

CHUNK_BYTES = 64 << 20  # of the widest thing that tokens are turned into at a time


@dataclass(frozen=True)
class ExpertMlp:
    """An expert that runs.

    Attributes:
        first: gate and up stacked, or up alone. `[matrices * intermediate, hidden]`
        down: `[hidden, intermediate]`
        first_bias, down_bias: or None.
        activation: `[tokens, matrices * intermediate]` -> `[tokens, intermediate]`.
    """

    first: Tensor
    down: Tensor
    first_bias: Tensor | None
    down_bias: Tensor | None
    activation: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, weights: ExpertWeights, activation: Callable[[Tensor], Tensor]) -> ExpertMlp:
        """From an expert's matrices in any float dtype."""
        matrices, biases = weights.matrices(), weights.biases()
        first = [matrix.float() for role, matrix in matrices.items() if role != "down"]
        first_biases = [bias.float() for role, bias in biases.items() if role != "down"]
        return cls(
            first=torch.cat(first),
            down=weights.down.float(),
            first_bias=torch.cat(first_biases) if first_biases else None,
            down_bias=None if weights.down_bias is None else weights.down_bias.float(),
            activation=activation,
        )

    def with_matrices(self, matrices: Mapping[str, Tensor]) -> ExpertMlp:
        """The same with other matrices `first` or `down`."""
        return replace(self, **matrices)  # type: ignore[arg-type]

    def inner(self, x: Tensor) -> Tensor:
        """What the down matrix is given. `[tokens, hidden]` -> `[tokens, intermediate]`"""
        return self.activation(linear(x, self.first, self.first_bias))

    def outer(self, inner: Tensor) -> Tensor:
        """`[tokens, intermediate]` -> `[tokens, hidden]`"""
        return linear(inner, self.down, self.down_bias)

    def __call__(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` -> `[tokens, hidden]`"""
        return self.outer(self.inner(x))

    def chunk(self) -> int:
        """How many tokens to work on at a time."""
        return max(16, CHUNK_BYTES // (4 * max(self.first.shape)))


def chunks(count: int, step: int) -> list[slice]:
    """Runs of at most `step` out of `count`."""
    return [slice(at, min(at + step, count)) for at in range(0, count, step)]
