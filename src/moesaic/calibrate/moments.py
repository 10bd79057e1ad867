"""Second moments of an expert's inputs, safe for experts that hardly any token reached.

With `n` tokens of its own, and the mean second moment `L` that the layer's tokens at large would give the expert
(a sample of them, sent through its own matrices), an expert's second moment is

    (sum over its tokens of a x x^T  +  SHRINKAGE * L) / (n + SHRINKAGE)

so that an expert without tokens has the layer's, one with a few has some of both, and one with thousands its own.
The weights `a` are 1, or the routing weights over their mean (affinity, MoEQuant's AGQ).
"""

from __future__ import annotations

import torch
from torch import Tensor

SHRINKAGE = 32.0  # tokens that the layer's moment counts for
SAMPLE_TOKENS = 512  # of the layer at large


def sample_rows(tokens: int) -> Tensor:
    """Indices of an even sample of the layer's tokens."""
    count = min(tokens, SAMPLE_TOKENS)
    return torch.arange(count) * tokens // count


class Moment:
    """Accumulates `sum a x x^T`, or its diagonal."""

    def __init__(self, size: int, *, diagonal: bool = False) -> None:
        self._diagonal = diagonal
        self._sum = torch.zeros(size) if diagonal else torch.zeros(size, size)
        self._weight = 0.0

    def add(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Take in tokens.

        Args:
            x: `[tokens, size]` float32.
            weight: `[tokens]`, not negative; None for ones.
        """
        if self._diagonal:
            squares = x * x if weight is None else x * x * weight[:, None]
            self._sum += squares.sum(dim=0)
        else:
            self._sum.addmm_((x if weight is None else x * weight[:, None]).T, x)
        self._weight += float(len(x)) if weight is None else float(weight.sum())

    def mean(self) -> Tensor:
        """The mean second moment, zero without tokens."""
        return self._sum / max(self._weight, 1e-30)

    def shrunk(self, toward: Tensor) -> Tensor:
        """The second moment, drawn toward the layer's `[size, size]` (or `[size]`) by the rule above.

        Made in place, since it is large: the moment is used up.
        """
        return self._sum.add_(toward, alpha=SHRINKAGE).div_(self._weight + SHRINKAGE)


def balanced(weight: Tensor) -> Tensor:
    """Routing weights over their mean, so that they sum to the number of tokens; ones where they are all zero."""
    mean = weight.mean() if len(weight) else torch.tensor(1.0)
    return weight / mean if float(mean) > 0 else torch.ones_like(weight)
