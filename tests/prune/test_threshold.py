"""The fixed ratio."""

from __future__ import annotations

import torch

from moesaic.prune import Threshold
from tests.prune.made_up import of_weights


def test_priority_is_the_ratio_to_the_largest() -> None:
    """`w_j / w_1`, worked out by hand, whatever the weights sum to."""
    found = Threshold()(of_weights([[0.5, 0.25, 0.05], [4.0, 3.0, 1.0]]), {})
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5, 0.1], [1.0, 0.75, 0.25]]))
