"""Kurtosis, against SciPy."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from moesaic.scores import kurtosis as module
from moesaic.scores.kurtosis import Kurtosis, kurtosis
from tests.scores.made_up import MadeUp


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_scipys_value(scale: float, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Pearson kurtosis of SciPy, for any size of the weights, in one chunk or in many."""
    weight = ((torch.randn(37, 53, generator=torch.Generator().manual_seed(1)) ** 3 + shift) * scale).float()
    wanted = float(stats.kurtosis(weight.double().numpy() / scale, axis=None, fisher=False))
    assert kurtosis(weight) == pytest.approx(wanted, rel=1e-9)
    monkeypatch.setattr(module, "_CHUNK", 100)
    assert kurtosis(weight) == pytest.approx(wanted, rel=1e-9)


def test_two_values_have_the_smallest() -> None:
    """Weights of one size and either sign have kurtosis 1, and so by definition have weights that are all equal."""
    assert kurtosis(torch.tensor([[2.0, -2.0], [-2.0, 2.0]])) == pytest.approx(1)
    assert kurtosis(torch.full((3, 3), 0.1)) == kurtosis(torch.zeros(3, 3)) == 1


def test_mean_over_matrices_by_their_size() -> None:
    """A matrix of 4 weights and kurtosis 1 beside one of 8 weights counts a third."""
    down = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    weights = MadeUp({"L": torch.ones(1, 2)}, {"L": [torch.tensor([[1.0, -1.0], [1.0, -1.0]])]}, None, {"L": [down]})
    assert Kurtosis()(weights).layers["L"] == pytest.approx(((1 + 2 * kurtosis(down)) / 3,))
