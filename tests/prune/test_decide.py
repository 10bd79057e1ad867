"""The steps that all policies share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.prune.decide import keep, rescale, share_threshold, sort_places


def test_places_are_sorted_and_the_order_leads_back() -> None:
    """Sorted weights scattered by the order are the router's own again; equal ones keep their order."""
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])
    experts = torch.tensor([[7, 1, 4], [3, 5, 2]])
    ranked, chosen, order = sort_places(weights, experts)
    assert chosen.tolist() == [[1, 4, 7], [3, 2, 5]]
    assert torch.equal(torch.zeros(2, 3).scatter(-1, order, ranked), weights)


def test_a_token_keeps_at_least_its_first() -> None:
    """No threshold leaves a token without an expert."""
    priority = torch.tensor([[0.1, 0.3], [0.0, 0.0]])
    assert keep(priority, 0.2).tolist() == [[False, True], [True, False]]
    assert keep(priority, torch.inf).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("total", [1.0, 0.37, 2.5])
def test_the_sum_of_the_weights_stays(total: float) -> None:
    """Kept weights sum to what all weights did: 1 where they are normalised, the same mass where they are not."""
    weights = torch.rand(20, 4).softmax(-1) * total
    kept = torch.rand(20, 4) > 0.5
    kept[:, 0] = True
    scaled = rescale(weights, kept)
    torch.testing.assert_close(scaled.sum(-1), weights.sum(-1))
    assert not scaled[~kept].any()
    ratio = scaled[:, 1:] / scaled[:, :1]
    torch.testing.assert_close(ratio[kept[:, 1:]], (weights[:, 1:] / weights[:, :1])[kept[:, 1:]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_keeping_all_changes_no_bit(dtype: torch.dtype) -> None:
    """A token that keeps everything has exactly the weights it had."""
    weights = torch.rand(50, 4).to(dtype)
    scaled = rescale(weights, torch.ones(50, 4, dtype=torch.bool))
    assert torch.equal(scaled, weights)
    assert scaled.dtype == dtype


def test_weights_of_zero_do_not_make_nan() -> None:
    """A token whose kept weights are all zero gets zeros."""
    assert not rescale(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)).any()


@settings(deadline=None, max_examples=50)
@given(
    tokens=st.integers(1, 60),
    k=st.integers(2, 8),
    share=st.floats(0.13, 1.0),
    seed=st.integers(0, 99),
    ties=st.booleans(),
)
def test_the_threshold_gives_the_share(tokens: int, k: int, share: float, seed: int, ties: bool) -> None:
    """The share that runs is the one asked for, or as near as ties and one expert a token allow."""
    priority = torch.rand(tokens, k, generator=torch.Generator().manual_seed(seed))
    if ties:
        priority = (priority * 4).round()
    value = share_threshold([priority], share)
    count = int(keep(priority, value).sum())
    possible = sorted({int(keep(priority, each).sum()) for each in [*priority.flatten().tolist(), torch.inf]})
    wanted = max(round(share * tokens * k), tokens)
    assert abs(count - wanted) == min(abs(each - wanted) for each in possible)


def test_one_threshold_for_several_layers() -> None:
    """With several layers the share is that of all of them, and one may run more than another."""
    strong, weak = torch.full((10, 2), 0.9), torch.full((10, 2), 0.1)
    value = share_threshold([strong, weak], 0.75)
    assert int(keep(strong, value).sum()) == 20
    assert int(keep(weak, value).sum()) == 10
