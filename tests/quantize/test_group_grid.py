"""The grid of one group, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moesaic.quantize import RTN
from moesaic.quantize.grid import row_scales
from moesaic.quantize.group_grid import GroupGrid, GroupSearch, sign_scale
from tests.quantize.made_up import gaussian

SEARCH = GroupSearch(symmetric=False, candidates=6, smallest=0.4, refits=1)


def case(columns: int = 64, rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Weights `[columns, rows]`, importances that differ a lot, and row scales with room."""
    weights = gaussian(rows, columns, size=1.0).T.contiguous()
    importance = torch.randn(columns, generator=torch.Generator().manual_seed(1)).exp()
    return weights, importance, row_scales(weights.abs().amax(dim=0))


def naive_error(found: GroupGrid, weights: Tensor, importance: Tensor) -> list[float]:
    """`sum d (w - s (q - z))^2` by loops, from the stored codes, nearest codes by trying all of them."""
    errors = []
    for row in range(weights.shape[1]):
        scale, zero = float(found.scale[row]), float(found.zero[row])
        total = 0.0
        for column in range(weights.shape[0]):
            value = float(weights[column, row])
            total += float(importance[column]) * min((value - scale * (q - zero)) ** 2 for q in range(2**found.bits))
        errors.append(total)
    return errors


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_error_is_that_of_the_nearest_codes(bits: int, symmetric: bool) -> None:
    """What the search minimises is the weighted squared error of the stored grid, cut weights included."""
    weights, importance, row_scale = case()
    zero = None if symmetric else torch.full((6,), 1.3)
    found = GroupGrid.stored(torch.full((6,), 0.4), zero, row_scale, bits)
    assert found.error(weights, importance).tolist() == pytest.approx(naive_error(found, weights, importance), rel=1e-4)
    codes = found.encode(weights)
    miss = (found.decode(codes) - weights).square().mul(importance[:, None]).sum(dim=0)
    assert miss.tolist() == pytest.approx(naive_error(found, weights, importance), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_factor_tried_is_better(bits: int, symmetric: bool) -> None:
    """The grid found is at least as good as every clipped range that the search may look at first."""
    weights, importance, row_scale = case()
    search = GroupSearch(symmetric=symmetric, candidates=6, smallest=0.4, refits=1)
    found = search(weights, importance, row_scale, bits).error(weights, importance)
    low, high = weights.amin(dim=0), weights.amax(dim=0)
    for factor in (1, 0.88, 0.76, 0.64, 0.52, 0.4):
        tried = GroupGrid.stored(*search._ranged(low * factor, high * factor, bits), row_scale, bits)
        assert (found <= tried.error(weights, importance) * (1 + 1e-6)).all()


def test_equal_importance_is_no_worse_than_rtn() -> None:
    """With all columns alike the search does what `rtn` does, and a refit on top."""
    weights, _, row_scale = case(rows=40)
    for symmetric in (False, True):
        search = GroupSearch(symmetric=symmetric, candidates=6, smallest=0.4, refits=1)
        for bits in (2, 3, 4):
            ours = float(search(weights, torch.ones(64), row_scale, bits).error(weights, torch.ones(64)).sum())
            made = RTN(symmetric=symmetric)(weights.T, bits).dequantize()
            assert ours <= float((made - weights.T).square().sum()) * 1.01


def test_importance_moves_the_grid() -> None:
    """A column that matters a million times more than the others is met almost exactly."""
    weights, importance, row_scale = case()
    importance = torch.ones(64)
    importance[9] = 1e6
    found = SEARCH(weights, importance, row_scale, 2)
    made = found.decode(found.encode(weights))
    plain = SEARCH(weights, torch.ones(64), row_scale, 2)
    assert (made - weights)[9].abs().mean() < 0.3 * (plain.decode(plain.encode(weights)) - weights)[9].abs().mean()


def test_one_bit_has_the_best_two_levels() -> None:
    """No other scale has less weighted error, and with equal importance it is the mean of `|w|`."""
    weights, importance, row_scale = case()
    assert torch.allclose(sign_scale(weights, torch.ones(64)), 2 * weights.abs().mean(dim=0))
    best = sign_scale(weights, importance)

    def error(scale: Tensor) -> Tensor:
        return ((weights.abs() - scale / 2).square() * importance[:, None]).sum(dim=0)

    assert all((error(best) <= error(best * factor)).all() for factor in (0.9, 0.99, 1.01, 1.1))
    assert SEARCH(weights, importance, row_scale, 1).zero_codes is None


def test_rows_choose_for_themselves() -> None:
    """`where` takes each row's numbers from one grid or the other."""
    row_scale = row_scales(torch.ones(3))
    one = GroupGrid.stored(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 1.0, 1.0]), row_scale, 2)
    other = GroupGrid.stored(torch.tensor([0.5, 0.6, 0.7]), torch.tensor([2.0, 2.0, 2.0]), row_scale, 2)
    mixed = one.where(torch.tensor([True, False, True]), other)
    assert mixed.scale.tolist() == [one.scale[0], other.scale[1], one.scale[2]]
    assert mixed.zero.tolist() == [one.zero[0], other.zero[1], one.zero[2]]


def test_more_refits_are_never_worse() -> None:
    """A refit is kept only where it helps."""
    weights, importance, row_scale = case(rows=40)
    for symmetric in (False, True):
        errors = [
            GroupSearch(symmetric, 6, 0.4, refits)(weights, importance, row_scale, 2).error(weights, importance)
            for refits in (0, 1, 3)
        ]
        assert (errors[1] <= errors[0]).all()
        assert (errors[2] <= errors[1]).all()
        assert errors[1].sum() < errors[0].sum()
