"""MaxVar, by hand."""

from __future__ import annotations

import pytest
import torch

from moesaic.scores.max_var import MaxVar, max_row_variance
from tests.scores.made_up import MadeUp


def test_population_variance_of_the_widest_row() -> None:
    """Rows (1, 3), (0, 0), (-2, 2) have variances 1, 0, 4 with 1/d: the largest is 4."""
    assert max_row_variance(torch.tensor([[1.0, 3.0], [0.0, 0.0], [-2.0, 2.0]])) == 4.0


def test_widest_row_is_not_the_row_with_the_largest_norm() -> None:
    """A row far from zero but narrow does not win: this is where the released code differs from the paper."""
    assert max_row_variance(torch.tensor([[10.0, 10.0], [-1.0, 1.0]])) == 1.0


def test_variance_runs_along_a_row() -> None:
    """Variance is over a neuron's inputs, not over neurons."""
    assert max_row_variance(torch.tensor([[5.0, 5.0], [-5.0, -5.0]])) == 0.0


def test_one_column_has_no_variance() -> None:
    """A single input gives 0 and not NaN."""
    assert max_row_variance(torch.tensor([[3.0], [4.0]])) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_widened_first(dtype: torch.dtype) -> None:
    """300² does not fit float16: the variance is taken in float32."""
    assert max_row_variance(torch.tensor([[-300.0, 300.0]], dtype=dtype)) == pytest.approx(90000.0, rel=0.01)


def test_scores_every_expert_of_every_layer() -> None:
    """Larger variance = larger score, layer by layer."""
    rows = [torch.tensor([[-1.0, 1.0]]), torch.tensor([[-3.0, 3.0]])]
    scores = MaxVar()(MadeUp({"L": torch.ones(2, 2), "M": torch.ones(2, 2)}, {"L": rows, "M": rows[::-1]}))
    assert scores.layers == {"L": (1.0, 9.0), "M": (9.0, 1.0)}


def test_input_is_not_changed() -> None:
    """Rules are pure."""
    weight = torch.tensor([[1.0, 2.0]])
    max_row_variance(weight)
    assert weight.tolist() == [[1.0, 2.0]]
