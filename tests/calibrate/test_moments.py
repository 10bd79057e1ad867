"""Second moments, shrunk toward the layer's."""

from __future__ import annotations

import pytest
import torch

from moesaic.calibrate.moments import SAMPLE_TOKENS, SHRINKAGE, Moment, balanced, sample_rows


@pytest.mark.parametrize("diagonal", [False, True])
def test_pieces_add_up(diagonal: bool):
    """A moment taken in pieces is the moment of all tokens, and its diagonal the mean square."""
    x = torch.randn(50, 6, dtype=torch.float64).float()
    moment = Moment(6, diagonal=diagonal)
    for piece in x.split(17):
        moment.add(piece)
    whole = x.T @ x / 50
    assert torch.allclose(moment.mean(), whole.diagonal() if diagonal else whole, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_few_tokens_count_for_little(count: int):
    """Without tokens the layer's moment is the expert's; with many it hardly matters; the rule holds in between."""
    x, layer = torch.randn(count, 4), torch.eye(4) * 5
    moment = Moment(4)
    moment.add(x)
    wanted = (x.T @ x + SHRINKAGE * layer) / (count + SHRINKAGE)
    if count == 0:
        assert torch.equal(moment.mean(), torch.zeros(4, 4))
        assert torch.allclose(wanted, layer)
    assert torch.allclose(moment.shrunk(layer), wanted, atol=1e-5)


def test_weights_scale_tokens():
    """A token of weight 2 counts like two tokens."""
    x = torch.randn(2, 3)
    one, two = Moment(3), Moment(3)
    one.add(x, torch.tensor([2.0, 1.0]))
    two.add(x[[0, 0, 1]])
    assert torch.allclose(one.mean(), two.mean(), atol=1e-6)


def test_balanced_weights_keep_the_number_of_tokens():
    """Routing weights are divided by their mean; where all are zero, or there are none, tokens count alike."""
    assert float(balanced(torch.tensor([0.1, 0.3])).sum()) == pytest.approx(2)
    assert balanced(torch.zeros(3)).tolist() == [1, 1, 1]
    assert len(balanced(torch.zeros(0))) == 0


def test_the_sample_is_spread_over_all_tokens():
    """All tokens of a short text, and an even choice out of a long one."""
    assert sample_rows(5).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(10 * SAMPLE_TOKENS + 3)
    assert len(rows) == SAMPLE_TOKENS
    assert int(rows[-1]) >= 9 * SAMPLE_TOKENS
    assert len(set(rows.tolist())) == SAMPLE_TOKENS
