"""What rules read of statistics is checked where it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moesaic.errors import UsageError
from moesaic.scores.measured import layer_stats, mean_per_token, measured
from tests.scores.made_up import random_stats, random_weights


def test_statistics_of_another_model() -> None:
    """A layer that is not there and another number of experts are told apart."""
    weights = random_weights()
    weights.measured = random_stats({"layers.0": 6, "layers.1": 4})
    assert layer_stats(weights, "layers.0") is weights.measured.layers["layers.0"]
    with pytest.raises(UsageError, match=r"have 4 experts for layers.1, the model has 6"):
        layer_stats(weights, "layers.1")
    weights.measured = random_stats({"layers.0": 6})
    with pytest.raises(UsageError, match=r"no layer layers.1"):
        layer_stats(weights, "layers.1")


def test_what_was_not_measured() -> None:
    """Errors that the run did not measure are named."""
    weights = random_weights()
    assert weights.measured is not None
    layer = replace(weights.measured.layers["layers.0"], fisher=None)
    weights.measured = replace(weights.measured, layers={"layers.0": layer})
    assert torch.equal(measured(weights, "layers.0", "output_error"), layer.output_error)
    with pytest.raises(UsageError, match="hold no fisher, which this rule needs; give --calibration"):
        measured(weights, "layers.0", "fisher")


def test_sums_become_means_over_tokens() -> None:
    """A sum over 500 tokens is divided by 500."""
    stats = random_stats({"L": 6}).layers["L"]
    assert mean_per_token(torch.tensor([500, 0]), stats) == (1.0, 0.0)
