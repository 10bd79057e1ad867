"""The ratio rule with protected tokens."""

from __future__ import annotations

import pytest
import torch

from moesaic.prune import Odp, Threshold
from tests.prune.made_up import random_routed


def test_without_protection_it_is_the_ratio() -> None:
    """`protect=0`, or no significance as in decoding, leaves the ratio rule."""
    routed = random_routed()
    assert torch.equal(Odp(protect=0)(routed, {}), Threshold()(routed, {}))
    in_decoding = random_routed()
    object.__setattr__(in_decoding, "significance", None)
    assert torch.equal(Odp()(in_decoding, {}), Threshold()(in_decoding, {}))
    assert Odp().needs
    assert not Odp(protect=0).needs


@pytest.mark.parametrize(("protect", "number"), [(0.02, 1), (0.1, 2), (0.26, 6)])
def test_protects_the_most_significant_of_each_sequence(protect: float, number: int) -> None:
    """The given share of each sequence, rounded up, keeps all experts; the others have their ratio."""
    routed = random_routed(tokens=40, batch=2)
    found = Odp(protect=protect)(routed, {})
    assert routed.significance is not None
    for rows in (slice(0, 20), slice(20, 40)):
        best = routed.significance[rows].topk(number).indices
        protected = torch.where(found[rows].isinf().all(dim=-1))[0]
        assert set(protected.tolist()) == set(best.tolist())
    plain = ~found.isinf().all(dim=-1)
    assert torch.equal(found[plain], routed.ratio[plain])


def test_padding_is_not_protected() -> None:
    """The quota is of the real tokens, and goes to them."""
    routed = random_routed(tokens=20, batch=1)
    assert routed.sequences is not None
    assert routed.significance is not None
    routed.sequences[:10] = -1
    routed.significance[:10] = 99
    protected = Odp(protect=0.2).protected(routed)
    assert not protected[:10].any()
    assert int(protected.sum()) == 2


@pytest.mark.parametrize("protect", [-0.1, 1.0])
def test_refuses_shares_that_cannot_be(protect: float) -> None:
    """A share of tokens is from 0 to below 1."""
    with pytest.raises(ValueError, match="protect"):
        Odp(protect=protect)
