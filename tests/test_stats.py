"""Calibration statistics."""

from __future__ import annotations

import torch

from moesaic.records import LayerStats


def test_rare_experts_are_those_that_few_tokens_reached():
    """Reports can name the experts that the calibration text hardly reached."""
    zeros = torch.zeros(3, dtype=torch.float64)
    moments = torch.zeros(3, 8, dtype=torch.float64)
    layer = LayerStats(100, torch.tensor([70, 31, 0]), zeros, zeros, moments, moments)
    assert layer.rare() == [1, 2]
    assert set(layer.tensors()) == {"count", "mass_before", "mass", "gate_up_moment", "down_moment"}
