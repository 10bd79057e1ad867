"""Random scores."""

from __future__ import annotations

import torch

from moesaic.scores.random import Random
from tests.scores.made_up import MadeUp

WEIGHTS = MadeUp({"L": torch.ones(50, 2), "M": torch.ones(50, 2)})


def test_seed_decides() -> None:
    """The same seed gives the same scores, another seed others."""
    assert Random(3)(WEIGHTS) == Random(3)(WEIGHTS)
    assert Random(3)(WEIGHTS).layers != Random(4)(WEIGHTS).layers


def test_layers_differ_and_values_are_in_the_unit_interval() -> None:
    """Each layer has draws of its own, uniform in [0, 1)."""
    layers = Random()(WEIGHTS).layers
    assert layers["L"] != layers["M"]
    assert all(0 <= value < 1 for values in layers.values() for value in values)


def test_reads_nothing_and_leaves_the_global_generator_alone() -> None:
    """The control costs nothing and does not disturb other random numbers."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    Random()(WEIGHTS)
    assert torch.equal(torch.get_rng_state(), before)
    assert WEIGHTS.asked == []
