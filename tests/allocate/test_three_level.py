"""Three widths; the published counts are compared in `tests/oracles/test_ranking.py`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.allocate.three_level import ThreeLevel, three_level_counts
from moesaic.errors import BudgetInfeasible
from moesaic.records import Budget, LayerShape, Scores

SHAPES = [LayerShape("L", 8, 20, 10)]
SCORES = Scores("r", {"L": tuple(map(float, range(8)))})


def test_best_experts_get_three_bits() -> None:
    """At 2 bits: the best two get 3, the worst two 1, as in the published table."""
    assert ThreeLevel()(SHAPES, Budget(2), SCORES).layers["L"].gate_up == (1, 1, 2, 2, 2, 2, 3, 3)


@pytest.mark.parametrize(("bits", "width"), [(1, 1), (3, 3)])
def test_ends_of_the_interval_are_uniform(bits: float, width: int) -> None:
    """The lowest and the highest budget leave no choice."""
    assert set(ThreeLevel()(SHAPES, Budget(bits), SCORES).layers["L"].gate_up) == {width}


@pytest.mark.parametrize("experts", [1, 2, 3])
def test_few_experts(experts: int) -> None:
    """With hardly any experts the counts stay whole and within the budget."""
    for bits in (1, 1.4, 2, 2.4, 2.9, 3):
        counts = three_level_counts(experts, Budget(bits), (1, 2, 3))
        assert sum(counts.values()) == experts
        assert sum(width * number for width, number in counts.items()) <= bits * experts + 1e-9


@settings(max_examples=200)
@given(experts=st.integers(1, 256), bits=st.floats(1, 3))
def test_trades_keep_the_two_level_sum(experts: int, bits: float) -> None:
    """Trading keeps the average: all affordable bits are spent, up to less than one, whatever the counts."""
    counts = three_level_counts(experts, Budget(bits), (1, 2, 3))
    spent = sum(width * number for width, number in counts.items())
    assert min(counts.values()) >= 0
    assert bits * experts - 1 - 1e-6 < spent <= bits * experts + 1e-6


@pytest.mark.parametrize("levels", [(1, 2, 4), (3, 2, 1), (1, 2), (1, 2, 3, 4), (1, 1, 1), (4, 6, 8)])
def test_levels_must_be_equally_spaced_widths(levels: tuple[int, ...]) -> None:
    """Levels off the formula's assumption are refused with the value."""
    with pytest.raises(ValueError, match="equally spaced"):
        ThreeLevel(levels)


@pytest.mark.parametrize("bits", [0.5, 3.2])
def test_unreachable_budget(bits: float) -> None:
    """The levels' interval is in the message."""
    with pytest.raises(BudgetInfeasible, match=r"\[1, 3\]"):
        ThreeLevel()(SHAPES, Budget(bits), SCORES)
