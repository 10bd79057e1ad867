"""Mask routers trained layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.fit.hard_masks import States
from moesaic.fit.layerwise import LOSSES, candidate_errors, sensitivities, train_layers
from moesaic.fit.recording import Recording, record_layers
from moesaic.fit.rules import calibrate
from moesaic.prune import Otp, Threshold
from moesaic.prune.decide import THRESHOLD, rescale


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


@pytest.fixture
def recording(model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> Recording:
    """What the layers of the model did."""
    return record_layers(model, windows, tmp_path)


def trained(model: PreTrainedModel, recording: Recording, windows: Tensor, **how: Any) -> tuple[States, dict[str, Any]]:
    """States after training, and what was said of it."""
    policy = Otp(width=8)
    rule = calibrate(model, windows, "threshold", Threshold(), 0.75)
    generator = torch.Generator().manual_seed(0)
    states = {name: policy.start(2, 64, generator, experts=8) | {THRESHOLD: torch.tensor(0.5)} for name in rule.layers}
    said = train_layers(model, recording, policy, states, 0.75, rule=rule, **how)
    assert not any(tensor.requires_grad for state in states.values() for tensor in state.values())
    return states, said


def test_training_lowers_the_expected_error(model: PreTrainedModel, windows: Tensor, recording: Recording) -> None:
    """On its training text a mask router finds masks of less error than at its start, at about the same share."""
    first, last = (trained(model, recording, windows, loss="expected", steps=steps, rate=0.02)[1] for steps in (1, 120))
    assert last["share"] == pytest.approx(0.75, abs=0.06)
    assert last["error"] < 0.95 * first["error"]
    assert last["stopped"] is None


def test_regression_keeps_the_best_estimate(model: PreTrainedModel, windows: Tensor, recording: Recording) -> None:
    """The deviance on tokens that are not trained on is never above that of the start; the cost is not touched."""
    states, said = trained(model, recording, windows, loss="regression", steps=40, rate=0.02)
    assert list(said["deviance"]) == list(states)
    assert all(best <= first for first, best in said["deviance"].values())
    assert all(float(state["cost"]) == 0 for state in states.values())


def test_estimates_are_right_on_average(model: PreTrainedModel, windows: Tensor, recording: Recording) -> None:
    """Before the first step every layer's mean estimate is its mean error: layers are compared in nats."""
    states, _ = trained(model, recording, windows, loss="regression", steps=0, rate=0.02)
    policy = Otp(width=8)
    for name, files in recording.layers.items():
        routed, gram = files.part(0, windows.numel())
        wanted = candidate_errors(routed.weights, gram, policy.masks(2)[:1]).mean()
        assert float(policy.log_errors(routed, states[name]).exp().mean()) == pytest.approx(float(wanted), rel=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_stops_at_nan(loss: str, model: PreTrainedModel, windows: Tensor, recording: Recording) -> None:
    """A rate that blows up stops the training with finite states and a word about it."""
    states, said = trained(model, recording, windows, loss=loss, steps=40, rate=1e38)
    assert "NaN" in said["stopped"]
    if loss == "regression":
        assert all(bool(torch.isfinite(tensor).all()) for state in states.values() for tensor in state.values())
