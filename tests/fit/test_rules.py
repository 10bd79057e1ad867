"""Thresholds for a share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import load
from moesaic.errors import UsageError
from moesaic.fit.rules import calibrate, check_target, measured_share, record, thresholds
from moesaic.prune import POLICIES
from moesaic.prune.decide import keep
from moesaic.runtime.skipping import skipping_of

RULES = [name for name in POLICIES if name != "otp"]


@pytest.mark.parametrize(("target", "top_k"), [(0.5, 2), (0.25, 4), (0.0, 2), (1.01, 2), (-1, 2), (float("nan"), 2)])
def test_refuses_targets_that_cannot_be(target: float, top_k: int) -> None:
    """Every token keeps one expert, so that `1 / k` and less cannot be reached, nor more than all."""
    with pytest.raises(UsageError, match="--target"):
        check_target(target, top_k)


@pytest.mark.parametrize(("target", "top_k"), [(1.0, 2), (0.51, 2), (0.26, 4)])
def test_accepts_the_others(target: float, top_k: int) -> None:
    """The interval is open below and closed above."""
    check_target(target, top_k)


def test_recording_sees_the_unpruned_model(model: PreTrainedModel, windows: Tensor) -> None:
    """What is recorded is the routing of every token in order, and the model is left as it was."""
    with torch.inference_mode():
        wanted = model(windows[:2]).logits
        recorded = record(model, windows, ("sequences",))
        assert torch.equal(model(windows[:2]).logits, wanted)
    assert len(recorded) == 2
    for parts in recorded.values():
        assert sum(len(part.weights) for part in parts) == windows.numel()
        assert all(part.sequences is not None and part.count == 8 for part in parts)
        assert all(bool((part.weights[:, 0] >= part.weights[:, 1]).all()) for part in parts)
    assert not model.model.layers[0].mlp.experts._forward_pre_hooks


@pytest.mark.parametrize("name", RULES)
def test_rules_reach_the_share(name: str, model: PreTrainedModel, windows: Tensor) -> None:
    """The share is that of the model with the rule at work; fixed_k comes as near as its steps allow."""
    found = calibrate(model, windows, name, POLICIES[name](), 0.75)
    assert found.reached == pytest.approx(0.75, abs=0.01)
    assert measured_share(model, windows, found) == pytest.approx(found.reached)
    assert skipping_of(model) is None
    assert found.top_k == 2


@pytest.mark.parametrize("name", RULES)
def test_the_whole_share_skips_nothing(name: str, model: PreTrainedModel, windows: Tensor) -> None:
    """At a target of 1 everything runs."""
    assert calibrate(model, windows[:4], name, POLICIES[name](), 1.0).reached == 1


@pytest.mark.parametrize("name", RULES)
def test_four_experts_a_token(name: str, top_four: Path, windows: Tensor) -> None:
    """Rules work for k > 2 and for weights that are not normalised."""
    model = load(top_four, dtype=torch.float32)
    found = calibrate(model, windows, name, POLICIES[name](), 0.6)
    assert found.reached == pytest.approx(0.6, abs={"fixed_k": 0.07, "pesf": 0.05}.get(name, 0.02))


def test_odp_has_a_threshold_a_layer(model: PreTrainedModel, windows: Tensor) -> None:
    """At 75 % of two experts, without protection, odp's threshold is each layer's median ratio, as in the paper."""
    recorded = record(model, windows)
    states = thresholds(POLICIES["odp"](protect=0), recorded, 0.75)
    for layer, parts in recorded.items():
        ratios = torch.cat([part.ratio[:, 1] for part in parts]).sort().values
        middle = len(ratios) // 2
        assert float(ratios[middle - 1]) <= float(states[layer]["threshold"]) <= float(ratios[middle])


def test_other_rules_have_one_threshold(model: PreTrainedModel, windows: Tensor) -> None:
    """The fixed ratio is one for all layers, and together they run the share."""
    recorded = record(model, windows)
    states = thresholds(POLICIES["threshold"](), recorded, 0.8)
    assert len({float(state["threshold"]) for state in states.values()}) == 1
    kept = [keep(part.ratio, states[layer]["threshold"]) for layer, parts in recorded.items() for part in parts]
    assert float(torch.cat(kept).float().mean()) == pytest.approx(0.8, abs=0.002)


def test_calibrating_twice_gives_the_same(model: PreTrainedModel, windows: Tensor) -> None:
    """Same input, same thresholds."""
    first, second = (calibrate(model, windows, "odp", POLICIES["odp"](), 0.8) for _ in range(2))
    assert first.reached == second.reached
    assert all(torch.equal(first.layers[name]["threshold"], second.layers[name]["threshold"]) for name in first.layers)
