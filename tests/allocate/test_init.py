"""The choice of allocator that a bare budget means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.allocate import ThreeLevel, TwoLevel, Uniform, default_allocator
from moesaic.errors import BudgetInfeasible
from moesaic.records import WIDTHS, Budget, LayerShape, Scores

SHAPES = [LayerShape("L", 8, 20, 10)]
SCORES = Scores("rule", {"L": tuple(map(float, range(8)))})


@pytest.mark.parametrize(
    ("bits", "wanted"),
    [
        (1, ThreeLevel()),
        (2.5, ThreeLevel()),
        (3, ThreeLevel()),
        (3.01, TwoLevel((3, 4))),
        (4, Uniform()),
        (5, TwoLevel((4, 8))),
        (8, Uniform()),
        (12, TwoLevel((8, 16))),
        (16, Uniform()),
    ],
)
def test_default_by_budget(bits: float, wanted: object) -> None:
    """Levels 1/2/3 up to 3 bits, above that the two widths around the budget."""
    assert default_allocator(Budget(bits)) == wanted


@pytest.mark.parametrize("bits", [0.99, 0.1])
def test_budget_below_one_bit_is_refused_with_the_interval(bits: float) -> None:
    """No width is below one bit."""
    with pytest.raises(BudgetInfeasible, match=r"interval is \[1, 16\]"):
        default_allocator(Budget(bits))


@given(st.floats(1, 16))
def test_every_reachable_budget_has_a_plan_within_it(bits: float) -> None:
    """Any budget from 1 to 16 gives a plan that keeps it, with less than one step of the levels left over."""
    plan = default_allocator(Budget(bits))(SHAPES, Budget(bits), SCORES)
    reached = plan.reached_bits(SHAPES)
    assert reached <= bits + 1e-9
    upper = next(width for width in WIDTHS if width >= bits)
    lower = max(width for width in WIDTHS if width <= bits)
    assert bits - reached < max(upper - lower, 1) / 8 + 1e-9
