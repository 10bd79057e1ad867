"""The triangular factor of a second moment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import NotFinite
from moesaic.quantize import factor as module
from moesaic.quantize.factor import Factor, check_finite, prepare
from tests.quantize.made_up import moment_of


def root_of(factor: Factor) -> Tensor:
    """`X`, float64, with zeros above the diagonal."""
    unit = factor.coupling.double().tril(-1) + torch.eye(factor.columns, dtype=torch.float64)
    return factor.pivots.double().sqrt()[:, None] * unit


def relative_damped(moment: Tensor, damping: float) -> Tensor:
    """What is factorised, float64: the moment over its mean diagonal, damped."""
    moment = moment.double() / moment.double().diagonal().mean()
    return moment + damping * torch.eye(len(moment), dtype=torch.float64)


@pytest.mark.parametrize("columns", [1, 2, 100, 256, 257, 600])
@pytest.mark.parametrize("tokens", [3, 900])
def test_the_factor_times_itself_is_the_moment(columns: int, tokens: int) -> None:
    """`X^T X` is the damped moment, for sizes below, at and above a block and for fewer tokens than inputs."""
    moment = moment_of(tokens, columns)
    made = prepare(moment)
    wanted = relative_damped(moment, 0.01)
    assert made.damping == 0.01
    assert (root_of(made).T @ root_of(made) - wanted).norm() < 1e-5 * wanted.norm()


def test_it_is_the_factor_of_the_three_step_way() -> None:
    """Cholesky, inverse, Cholesky of the inverse, as published, in float64: the same update of later columns."""
    moment = moment_of(400, 300)
    lower = torch.linalg.cholesky(relative_damped(moment, 0.01))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    root = root_of(prepare(moment))
    assert (torch.linalg.inv(root).T - upper).abs().max() < 1e-4 * upper.abs().max()


@given(columns=st.integers(1, 40), tokens=st.integers(1, 60), seed=st.integers(0, 1000), power=st.integers(-30, 30))
@settings(max_examples=40, deadline=None)
def test_the_size_of_the_moment_does_not_matter(columns: int, tokens: int, seed: int, power: int) -> None:
    """A sum or a mean, large or small: a power of two leaves every number as it is."""
    moment = moment_of(tokens, columns, seed)
    one, other = prepare(moment), prepare(moment * 2.0**power)
    assert torch.equal(one.coupling.tril(-1), other.coupling.tril(-1))
    assert torch.equal(one.pivots, other.pivots)


def test_the_number_of_threads_does_not_show() -> None:
    """One, two and four threads give the same bits, over several blocks and tiles."""
    moment, before = moment_of(2000, 1400), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(prepare(moment))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each.coupling, found[0].coupling) for each in found)
    assert all(torch.equal(each.pivots, found[0].pivots) for each in found)


def test_act_order_is_descending_and_can_be_undone() -> None:
    """The columns come by falling mean square, ties as they lie, and `in_place` puts values back."""
    moment = torch.diag(torch.tensor([1.0, 3.0, 2.0, 3.0]))
    made = prepare(moment, act_order=True)
    assert made.order is not None
    assert made.order.tolist() == [1, 3, 2, 0]
    assert made.in_place(made.diagonal).tolist() == pytest.approx([4 / 9, 12 / 9, 8 / 9, 12 / 9])
    plain = prepare(moment)
    assert plain.in_place(plain.diagonal) is plain.diagonal


def test_damping_is_raised_until_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix with a negative eigenvalue, as rounding may leave it, is damped tenfold until it has a factor."""
    moment = torch.full((8, 8), 2.0)
    moment.diagonal().fill_(1.0)  # eigenvalues 15 and -1
    made = prepare(moment, damping=0.02)
    assert made.damping == pytest.approx(2.0)
    wanted = relative_damped(moment, made.damping)
    assert (root_of(made).T @ root_of(made) - wanted).norm() < 1e-5 * wanted.norm()


def test_float64_is_tried_before_more_damping() -> None:
    """A moment that float32 cannot factorise at its damping is factorised in float64, the damping as asked."""
    one = torch.ones(400, 400, dtype=torch.float64)  # one direction, and 1e-7 of it everywhere
    assert prepare(one, damping=1e-7).damping == 1e-7


@pytest.mark.parametrize(
    "moment",
    [
        torch.zeros(70, 70),
        torch.ones(70, 70),
        moment_of(1, 70),
        torch.diag(torch.arange(70.0)),
        moment_of(5, 70) * 1e-40,
    ],
    ids=["no token", "constant inputs", "one token", "dead input", "tiny"],
)
def test_poor_moments_have_a_factor(moment: Tensor) -> None:
    """Whatever the tokens were, the factor is finite and its pivots are positive."""
    made = prepare(moment)
    assert made.coupling.tril(-1).isfinite().all()
    assert (made.pivots > 0).all()
    assert made.pivots.isfinite().all()


def test_no_tokens_are_the_identity() -> None:
    """A moment of zeros says nothing: no coupling, all columns alike."""
    made = prepare(torch.zeros(5, 5))
    assert not made.coupling.tril(-1).any()
    assert made.pivots.unique().numel() == 1


def test_dead_inputs_disturb_nothing() -> None:
    """The columns of inputs that are always zero neither give nor take errors."""
    moment = moment_of(50, 9)
    moment[4], moment[:, 4] = 0, 0
    coupling = prepare(moment).coupling.tril(-1)
    assert not coupling[4].any()
    assert not coupling[:, 4].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_refused(value: float) -> None:
    """One bad number anywhere is named as what it is."""
    moment = moment_of(20, 12)
    moment[7, 3] = value
    with pytest.raises(NotFinite, match=r"second moment.*\[12, 12\]: 1 values are NaN or infinite"):
        prepare(moment)


def test_large_numbers_are_not_taken_for_infinite() -> None:
    """Finite values whose sum is beyond float64 are finite."""
    check_finite(torch.full((4,), 1.7e308, dtype=torch.float64), "x", "y")


def test_what_is_no_moment_is_refused() -> None:
    """A shape that is not square and damping that does nothing are errors of the caller."""
    with pytest.raises(ValueError, match=r"square.*\[3, 4\]"):
        prepare(torch.ones(3, 4))
    with pytest.raises(ValueError, match="damping must be positive, got 0"):
        prepare(torch.eye(3), damping=0.0)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other blocks and tiles give the same factor up to rounding, and the moment stays as it was."""
    moment = moment_of(300, 200)
    before = moment.clone()
    whole = prepare(moment)
    monkeypatch.setattr(module, "_BLOCK", 48)
    monkeypatch.setattr(module, "_TILE", 32)
    cut = prepare(moment)
    assert torch.equal(moment, before)
    assert torch.allclose(whole.coupling.tril(-1), cut.coupling.tril(-1), atol=1e-5)
