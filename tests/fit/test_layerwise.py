"""Mask routers trained layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.fit.layerwise import candidate_errors, sensitivities, train_layers
from moesaic.fit.recording import record_layers
from moesaic.fit.rules import calibrate
from moesaic.prune import Otp, Threshold
from moesaic.prune.decide import rescale


def test_the_error_is_that_of_the_outputs(generator: torch.Generator) -> None:
    """The quadratic form of the Gram matrix is the squared change of the weighted sum, mask by mask."""
    weights = torch.rand(5, 3, generator=generator).sort(descending=True).values
    outputs = torch.randn(5, 3, 7, generator=generator)
    masks = Otp(candidates="subsets").masks(3)
    found = candidate_errors(weights, outputs @ outputs.transpose(1, 2), masks)
    for column, mask in enumerate(masks):
        change = rescale(weights, mask.expand_as(weights)) - weights
        wanted = (change[..., None] * outputs).sum(1).square().sum(-1)
        torch.testing.assert_close(found[:, column], wanted, rtol=1e-4, atol=1e-5)
    assert not found[:, -1].any()  # the mask that runs everything


def test_sensitivities_are_positive(model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> None:
    """Pruning a layer moves the outputs, and each layer has its own price."""
    rule = calibrate(model, windows, "threshold", Threshold(), 0.75)
    stored = record_layers(model, windows, tmp_path, metric="output").layers
    found = sensitivities(model, windows[:4], stored, rule)
    assert list(found) == list(stored)
    assert all(value > 0 for value in found.values())


def test_training_lowers_the_error(model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> None:
    """On its training text a mask router finds masks of less error than the ratio rule's, at about the same share."""
    policy = Otp(width=8)
    rule = calibrate(model, windows, "threshold", Threshold(), 0.75)
    recording = record_layers(model, windows, tmp_path)
    results = []
    for steps in (1, 120):
        generator = torch.Generator().manual_seed(0)
        states = {name: policy.start(2, 64, generator, experts=8) for name in rule.layers}
        offset = float(next(iter(rule.layers.values()))["threshold"])
        for state in states.values():
            state["offset"] = torch.full((2,), offset).log()
        results.append(train_layers(model, recording, policy, states, 0.75, rule=rule, steps=steps, rate=0.02))
        assert not any(tensor.requires_grad for state in states.values() for tensor in state.values())
    first, last = results
    assert last["share"] == pytest.approx(0.75, abs=0.06)
    assert last["error"] < 0.9 * first["error"]
    assert last["stopped"] is None


def test_stops_at_nan(model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> None:
    """A rate that blows up stops the training with finite states and a word about it."""
    policy = Otp(width=8)
    rule = calibrate(model, windows, "threshold", Threshold(), 0.75)
    states = {name: policy.start(2, 64, torch.Generator().manual_seed(0), experts=8) for name in rule.layers}
    recording = record_layers(model, windows, tmp_path)
    said = train_layers(model, recording, policy, states, 0.75, rule=rule, steps=40, rate=1e38)
    assert "NaN" in said["stopped"]
