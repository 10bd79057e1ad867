"""Mask routers trained layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import load
from moesaic.fit.layerwise import candidate_errors, record_layers, sensitivities, train_layers
from moesaic.fit.rules import calibrate
from moesaic.prune import Otp, Threshold
from moesaic.prune.decide import rescale
from moesaic.runtime.skipping import expert_modules


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


@pytest.mark.parametrize("kind", ["packed", "top_four"])
def test_the_record_is_what_the_layer_did(
    kind: str, request: pytest.FixtureRequest, windows: Tensor, tmp_path: Path
) -> None:
    """`w^T G w` is the squared norm of the layer's own output, for every token of every window in order."""
    model = load(request.getfixturevalue(kind), dtype=torch.float32)
    outputs: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _a, out, name=name: outputs.setdefault(name, []).append(out))
        for name, module in expert_modules(model).items()
    ]
    stored = record_layers(model, windows, tmp_path)
    for hook in hooks:
        hook.remove()
    for name, files in stored.items():
        routed, gram = files.part(0, windows.numel())
        norm = torch.einsum("ti,tij,tj->t", routed.weights, gram, routed.weights)
        torch.testing.assert_close(norm, torch.cat(outputs[name]).square().sum(-1), rtol=1e-3, atol=1e-5)


def test_sensitivities_are_positive(model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> None:
    """Pruning a layer moves the outputs, and each layer has its own price."""
    rule = calibrate(model, windows, "threshold", Threshold(), 0.75)
    stored = record_layers(model, windows, tmp_path)
    found = sensitivities(model, windows[:4], stored, rule)
    assert list(found) == list(stored)
    assert all(value > 0 for value in found.values())


def test_training_lowers_the_error(model: PreTrainedModel, windows: Tensor) -> None:
    """On its training text a mask router finds masks of less error than the ratio rule's, at about the same share."""
    policy = Otp(width=8)
    rule = calibrate(model, windows, "threshold", Threshold(), 0.75)
    results = []
    for steps in (1, 120):
        generator = torch.Generator().manual_seed(0)
        states = {name: policy.start(2, 64, generator) for name in rule.layers}
        offset = float(next(iter(rule.layers.values()))["threshold"])
        for state in states.values():
            state["offset"] = torch.full((2,), offset).log()
        results.append(train_layers(model, windows, policy, states, 0.75, rule=rule, steps=steps, rate=0.02))
        assert not any(tensor.requires_grad for state in states.values() for tensor in state.values())
    first, last = results
    assert last["share"] == pytest.approx(0.75, abs=0.06)
    assert last["error"] < 0.9 * first["error"]
    assert last["stopped"] is None


def test_stops_at_nan(model: PreTrainedModel, windows: Tensor) -> None:
    """A rate that blows up stops the training with finite states and a word about it."""
    policy = Otp(width=8)
    rule = calibrate(model, windows, "threshold", Threshold(), 0.75)
    states = {name: policy.start(2, 64, torch.Generator().manual_seed(0)) for name in rule.layers}
    said = train_layers(model, windows, policy, states, 0.75, rule=rule, steps=40, rate=1e38)
    assert "NaN" in said["stopped"]
