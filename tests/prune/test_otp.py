"""The mask router."""

from __future__ import annotations

import itertools

import pytest
import torch

from moesaic.prune import Otp
from moesaic.prune.decide import decide
from moesaic.prune.otp import log_change, priced
from tests.prune.made_up import EXPERTS, random_routed


def started(policy: Otp, k: int = 4, hidden: int = 6) -> dict[str, torch.Tensor]:
    """A state before training."""
    return {
        **policy.start(k, hidden, torch.Generator().manual_seed(1), experts=EXPERTS),
        "threshold": torch.tensor(0.5),
    }


def shaken(policy: Otp, k: int = 4, hidden: int = 6) -> dict[str, torch.Tensor]:
    """A state with a correction that is not zero."""
    state = started(policy, k, hidden)
    generator = torch.Generator().manual_seed(2)
    moved = [name for name in ("outer", "prefer", "table") if name in state]
    return state | {name: torch.randn(state[name].shape, generator=generator) for name in moved}


@pytest.mark.parametrize("k", [2, 4, 8])
def test_candidates(k: int) -> None:
    """Prefixes are the first 1 to k places; subsets are all sets of places but the empty one."""
    prefixes = Otp().masks(k)
    assert [row.nonzero().flatten().tolist() for row in prefixes] == [list(range(n + 1)) for n in range(k)]
    subsets = {tuple(row.tolist()) for row in Otp(candidates="subsets").masks(k)}
    assert subsets == set(itertools.product((0.0, 1.0), repeat=k)) - {(0.0,) * k}


def test_starts_from_the_change_of_the_weights() -> None:
    """Before training the second of two experts runs when its weight is above a bound, which the price sets."""
    policy, routed = Otp(), random_routed(k=2)
    state = started(policy, k=2) | {"cost": torch.tensor(2 * 0.2**2).log()}
    kept = decide(policy, routed, state)
    assert torch.equal(kept[:, 1], routed.weights[:, 1] > 0.2)
    assert bool(kept[:, 0].all())


def test_the_change_of_the_weights_worked_out() -> None:
    """With weights 0.5, 0.3 and 0.2, running the first alone changes them by 0.5, 0.3 and 0.2."""
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    found = log_change(weights, Otp().masks(3))
    wanted = [0.25 + 0.09 + 0.04, (0.5 / 0.8 - 0.5) ** 2 + (0.3 / 0.8 - 0.3) ** 2 + 0.04]
    assert found[0, :2].exp().tolist() == pytest.approx(wanted)
    assert float(found[0, 2]) < -40


def test_masks_are_compared_by_error_and_price() -> None:
    """The mask of least error plus price wins, and the full mask has no error."""
    masks = Otp().masks(2)
    log_errors = torch.tensor([[0.1], [3.0]]).log()  # of running one expert; the price is 1
    assert priced(log_errors, 0.0, masks).argmax(-1).tolist() == [0, 1]
    assert priced(log_errors, 0.0, masks)[0].tolist() == pytest.approx([-1.1, -2.0])


def test_the_mask_is_the_most_likely_one() -> None:
    """The priority is 1 for the candidate with the largest logit, and nothing is drawn by chance."""
    policy, routed = Otp(candidates="subsets"), random_routed()
    state = shaken(policy)
    best = policy.logits(routed, state).argmax(-1)
    assert torch.equal(policy(routed, state), policy.masks(4)[best])
    assert torch.equal(policy(routed, state), policy(routed, state))


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    """A token alone gets the mask that it gets among others: the policy is causal."""
    policy, routed = Otp(), random_routed()
    state = shaken(policy)
    together = policy(routed, state)
    for row in range(5):
        one = random_routed()
        for name in ("weights", "experts", "hidden"):
            object.__setattr__(one, name, getattr(routed, name)[row : row + 1])
        assert torch.equal(policy(one, state)[0], together[row])


def test_a_higher_cost_runs_less() -> None:
    """The common cost moves the share, from everything to one expert a token."""
    policy, routed = Otp(), random_routed()
    state = shaken(policy)
    shares = [float(decide(policy, routed, state | {"cost": torch.tensor(c)}).float().mean()) for c in (-50.0, 0, 50)]
    assert shares[0] == 1
    assert shares[0] > shares[1] > shares[2] == 0.25


@pytest.mark.parametrize(
    ("features", "shown"),
    [
        ("all", ("hidden", "weights", "experts")),
        ("both", ("hidden", "weights")),
        ("weights", ("weights",)),
        ("hidden", ("hidden",)),
    ],
)
def test_features_that_are_not_shown_do_not_matter(features: str, shown: tuple[str, ...]) -> None:
    """The correction sees the hidden state, the weights and the chosen experts, as its knob says."""
    policy, routed = Otp(features=features), random_routed()
    state = shaken(policy) | {"slope": torch.zeros(3)}  # the change of the weights would show them in any case
    before = policy.logits(routed, state)
    other = random_routed(seed=5)
    for name in ("hidden", "weights", "experts"):
        changed = random_routed()
        object.__setattr__(changed, name, getattr(other, name))
        assert torch.equal(policy.logits(changed, state), before) == (name not in shown)


def test_width_is_the_number_of_projected_values() -> None:
    """The knob sets the projection."""
    assert started(Otp(width=5))["project"].shape == (5, 6)


@pytest.mark.parametrize("knobs", [{"candidates": "all"}, {"features": "none"}, {"width": 0}])
def test_refuses_knobs_that_cannot_be(knobs: dict) -> None:
    """A wrong knob is said at once."""
    with pytest.raises(ValueError, match=next(iter(knobs))):
        Otp(**knobs)


def test_refuses_too_many_subsets() -> None:
    """255 masks are the most."""
    with pytest.raises(ValueError, match="prefixes"):
        Otp(candidates="subsets").masks(9)
