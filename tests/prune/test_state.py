"""The noun of run-time skipping."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moesaic.prune import Pruning, Threshold


def test_is_frozen() -> None:
    """A policy that is at work in a model is not changed under it."""
    pruning = Pruning("threshold", Threshold(), 2, 0.8, 0.79, {"layer": {"threshold": torch.tensor(0.4)}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruning.target = 0.5  # type: ignore[misc]
    assert pruning.details == {}
