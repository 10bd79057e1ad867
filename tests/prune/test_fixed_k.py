"""The same number for all tokens of a layer."""

from __future__ import annotations

import torch

from moesaic.prune import FixedK
from moesaic.prune.decide import keep
from tests.prune.made_up import random_routed


def test_all_tokens_are_treated_alike() -> None:
    """What runs depends on the layer's means and on nothing of the token."""
    state = {"means": torch.tensor([1.0, 0.6, 0.3, 0.2])}
    kept = keep(FixedK()(random_routed(), state), 0.25)
    assert kept.unique(dim=0).tolist() == [[True, True, True, False]]
