"""Hard masks: share and divergence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.fit import hard_masks
from moesaic.fit.hard_masks import HeldBack, divergence, logits_of, meet_share, share_cost
from moesaic.prune import Otp, Pruning
from moesaic.prune.decide import THRESHOLD
from moesaic.prune.otp import priced
from moesaic.runtime.skipping import attach, detach, expert_modules


def test_divergence_is_that_of_the_definition(generator: torch.Generator) -> None:
    """`sum p (log p - log q)`, averaged over the tokens."""
    teacher, student = torch.randn(2, 5, 9, generator=generator)
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert float(divergence(teacher, student)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 1.0])
def test_the_cost_gives_the_share(share: float, generator: torch.Generator) -> None:
    """The most likely masks under the found cost run the share asked for."""
    masks = Otp().masks(4)
    errors = torch.randn(4000, 3, generator=generator).sort(descending=True).values
    counts = masks.sum(-1)
    cost = share_cost(errors, masks, share)
    ran = counts[priced(errors, cost, masks).argmax(-1)].mean() / 4
    assert float(ran) == pytest.approx(share, abs=0.01)


def test_a_share_is_met_in_the_model(model: PreTrainedModel, windows: Tensor) -> None:
    """What `meet_share` says is what a model with these states runs."""
    policy = Otp(width=4)
    states = {name: policy.start(2, 64, torch.Generator().manual_seed(0), experts=8) for name in expert_modules(model)}
    states = {name: state | {THRESHOLD: torch.tensor(0.5)} for name, state in states.items()}
    met, share = meet_share(model, policy, states, windows, 0.7)
    assert share == pytest.approx(0.7, abs=0.01)
    skipping = attach(model, Pruning("otp", policy, 2, 0.7, share, met))
    skipping.count()
    with torch.inference_mode():
        model(windows)
    assert skipping.share() == pytest.approx(share, abs=1e-6)
    detach(model)


@pytest.mark.parametrize("room", [0, 1 << 30])
def test_the_divergence_is_that_of_the_model_with_the_policy(
    room: int, model: PreTrainedModel, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure is the KL of a model with the policy attached, whether or not the answers are kept."""
    monkeypatch.setattr(hard_masks, "_TEACHER_BYTES", room)
    policy = Otp(width=4)
    more = {THRESHOLD: torch.tensor(0.5), "cost": torch.tensor(2 * 0.49**2).log()}
    states = {
        name: policy.start(2, 64, torch.Generator().manual_seed(0), experts=8) | more for name in expert_modules(model)
    }
    held = HeldBack(model, windows)
    found = [held.divergence(policy, states) for _ in range(2)]
    with torch.inference_mode():
        teacher = logits_of(model, windows)
        attach(model, Pruning("otp", policy, 2, 0.7, 0.7, states))
        wanted = float(divergence(teacher, logits_of(model, windows)))
    assert found == pytest.approx([wanted, wanted], rel=1e-4)
    assert wanted > 0
