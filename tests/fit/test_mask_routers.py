"""Mask routers trained through the whole model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moesaic import load
from moesaic.errors import TrainingFailed, UsageError
from moesaic.fit.differentiable import differentiable
from moesaic.fit.mask_routers import Training, retarget, train, training_windows
from moesaic.fit.recording import record_layers
from moesaic.prune import Otp
from moesaic.runtime.skipping import expert_modules

QUICK = Training(layer_steps=20, steps=4, batch_tokens=96, checks=2, metric="output")


def fitted(model: PreTrainedModel, windows: Tensor, training: Training = QUICK, target: float = 0.75, **knobs: object):
    """A trained policy."""
    with differentiable(model, 1 << 30):
        return train(model, windows, Otp(width=4, **knobs), target, training)


@pytest.mark.parametrize(
    ("changes", "knobs"),
    [
        ({}, {}),
        ({"estimator": "soft", "layer_steps": 0}, {"candidates": "subsets"}),
        ({"warm_start": False, "steps": 0, "metric": "fisher", "loss": "expected"}, {}),
    ],
)
def test_trains_and_meets_the_share(changes: dict, knobs: dict, model: PreTrainedModel, windows: Tensor) -> None:
    """Every kind of training ends with finite hard masks at the target, and leaves the model as it was."""
    before = [parameter.clone() for parameter in model.parameters()]
    found = fitted(model, windows, Training(**{**vars(QUICK), **changes}), **knobs)
    assert found.reached == pytest.approx(0.75, abs=0.05)
    assert all(bool(torch.isfinite(t).all()) and not t.requires_grad for s in found.layers.values() for t in s.values())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(module._forward_pre_hooks for module in expert_modules(model).values())
    assert found.details["stopped"] is None


def test_four_experts_a_token(top_four: Path, windows: Tensor) -> None:
    """Subsets of four places are trained too, on a model with a shared expert."""
    model = load(top_four, dtype=torch.float32).requires_grad_(False)
    found = fitted(model, windows, target=0.6, candidates="subsets")
    assert found.top_k == 4
    assert found.reached == pytest.approx(0.6, abs=0.05)


def test_the_result_is_no_worse_than_the_start(model: PreTrainedModel, windows: Tensor) -> None:
    """The best state on the windows held back is kept, the ratio rule at the start included."""
    found = fitted(model, windows)
    checks = [each["held_back_kl"] for each in found.details["history"] if "held_back_kl" in each]
    assert len(checks) == 1 + 1 + 2
    assert found.details["kl_held_back"] == min(checks)


def test_training_twice_gives_the_same(model: PreTrainedModel, windows: Tensor) -> None:
    """Same input and seed, same bytes; another seed gives another state."""
    first, second = fitted(model, windows), fitted(model, windows)
    other = fitted(model, windows, Training(**{**vars(QUICK), "seed": 1}))
    for name, state in first.layers.items():
        assert all(torch.equal(state[key], second.layers[name][key]) for key in state)
        assert not torch.equal(state["project"], other.layers[name]["project"])


def test_one_recording_serves_several_targets(model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> None:
    """Training on what was recorded before gives the same bytes as training that records by itself."""
    training = Training(**{**vars(QUICK), "metric": "fisher", "steps": 0})
    with differentiable(model, 1 << 30):
        recording = record_layers(model, training_windows(windows, training)[0], tmp_path)
        for target in (0.75, 0.6):
            found = train(model, windows, Otp(width=4), target, training, recording=recording)
            wanted = fitted(model, windows, training, target)
            assert found.reached == wanted.reached == pytest.approx(target, abs=0.05)
            for name, state in wanted.layers.items():
                assert all(torch.equal(state[key], found.layers[name][key]) for key in state)


def test_one_training_serves_several_targets(model: PreTrainedModel, windows: Tensor) -> None:
    """With another price the same estimates run another share; nothing else changes."""
    found = fitted(model, windows, Training(layer_steps=20))
    other = retarget(model, found, windows, 0.6)
    assert other.target == 0.6
    assert other.reached == pytest.approx(0.6, abs=0.01)
    for layer, state in other.layers.items():
        assert float(state["cost"]) > float(found.layers[layer]["cost"])
        assert all(torch.equal(state[key], found.layers[layer][key]) for key in state if key != "cost")
    with pytest.raises(UsageError):
        retarget(model, found, windows, 0.5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"rate": 0.05}),
        ({}, {"hot": 5.0}),
        ({}, {"cold": 1.0}),
        ({}, {"noise": 0.1}),
        ({}, {"estimator": "soft"}),
        ({}, {"batch_tokens": 48}),
        ({}, {"steps": 2}),
        ({}, {"warm_start": False}),
        ({}, {"held_back": 0.3}),
        ({"layer_steps": 8, "steps": 0}, {"layer_steps": 16, "steps": 0}),
        ({"layer_steps": 8, "steps": 0}, {"layer_steps": 8, "steps": 0, "metric": "fisher"}),
        ({"layer_steps": 8, "steps": 0}, {"layer_steps": 8, "steps": 0, "loss": "expected"}),
    ],
)
def test_every_knob_does_something(first: dict, second: dict, model: PreTrainedModel, windows: Tensor) -> None:
    """A knob that changes no step would be one that does nothing."""
    base = {**vars(QUICK), "layer_steps": 0, "steps": 3, "checks": 1}
    results = [fitted(model, windows, Training(**{**base, **change})) for change in (first, second)]
    assert results[0].details["history"] != results[1].details["history"]


@pytest.mark.parametrize(
    "knobs", [{"estimator": "hard"}, {"loss": "mean"}, {"held_back": 0}, {"steps": -1}, {"metric": "kl"}, {"checks": 0}]
)
def test_refuses_knobs_that_cannot_be(knobs: dict) -> None:
    """A wrong knob is said at once."""
    with pytest.raises(ValueError, match=r"estimator|held_back|metric|loss"):
        Training(**knobs)


def test_temperature_and_noise_fall() -> None:
    """The schedule ends cold and without noise, and the rate ends near zero."""
    training = Training(steps=100)
    first, last = training.at(0), training.at(99)
    assert first[1] == training.hot
    assert last[1] == pytest.approx(training.cold, rel=0.05)
    assert last[2] == pytest.approx(0, abs=0.02)
    assert last[0] < 0.01 * training.rate


class Poison(nn.Module):
    """Gives NaN after some calls."""

    def __init__(self, inner: nn.Module, after: int) -> None:
        super().__init__()
        self.inner, self.left = inner, after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        return self.inner(x) * (torch.nan if self.left < 0 else 1.0)


def test_nan_in_training_keeps_the_last_good_state(model: PreTrainedModel, windows: Tensor) -> None:
    """A step with NaN stops the training; what comes back is finite, and says that it was stopped and where."""
    sound = fitted(model, windows, Training(**{**vars(QUICK), "layer_steps": 0}))
    head = Poison(model.lm_head, after=7)  # after the check of the start, in the first steps
    model.lm_head = head
    found = fitted(model, windows, Training(**{**vars(QUICK), "layer_steps": 0}))
    model.lm_head = head.inner
    assert head.left < 0
    assert "NaN in step" in found.details["stopped"]
    assert math.isfinite(found.details["kl_held_back"])
    assert all(bool(torch.isfinite(tensor).all()) for state in found.layers.values() for tensor in state.values())
    assert set(found.layers) == set(sound.layers)


def test_nan_before_training_is_an_error(model: PreTrainedModel, windows: Tensor) -> None:
    """A model whose outputs are NaN from the start has no good state to keep."""
    model.lm_head = Poison(model.lm_head, after=0)
    with pytest.raises(TrainingFailed, match="NaN before training"):
        fitted(model, windows)
