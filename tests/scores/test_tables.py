"""From tensors of costs to a table."""

from __future__ import annotations

import torch

from moesaic.scores.tables import tabulate
from tests.scores.made_up import random_weights


def test_whole_layers() -> None:
    """A matrix of costs is a layer of that name, with the number of weights of its experts."""
    table = tabulate(random_weights(), "r", (1, 2), {"layers.0": torch.arange(12).view(6, 2)})
    assert table.layers["layers.0"][5] == (10.0, 11.0)
    assert table.weights == {"layers.0": 256}
    assert not table.raw
    assert not table.per_matrix


def test_entries_become_layers() -> None:
    """Costs apart for gate_up and down make two layers, each with its number of weights and the same factors."""
    costs = torch.arange(24).view(6, 2, 2)
    factor = {"layers.0": (1.0,) * 6}
    table = tabulate(random_weights(), "r", (1, 2), {"layers.0": costs}, frequency=factor, routing_weight=factor)
    assert list(table.layers) == ["layers.0/gate_up", "layers.0/down"]
    assert table.layers["layers.0/down"][5] == (21.0, 23.0)
    assert table.weights == {"layers.0/gate_up": 128, "layers.0/down": 128}
    assert table.frequency == {"layers.0/gate_up": (1.0,) * 6, "layers.0/down": (1.0,) * 6}
    assert table.per_matrix
