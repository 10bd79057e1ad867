"""Two widths."""

from __future__ import annotations

import pytest

from moesaic.allocate.two_level import TwoLevel
from moesaic.errors import BudgetInfeasible
from moesaic.records import Budget, LayerShape, Scores

SHAPES = [LayerShape("L", 8, 20, 10)]
SCORES = Scores("r", {"L": (0.0, 7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0)})


def test_half_and_half_as_in_the_papers_switch_example() -> None:
    """2.5 bits with levels 2/3: the best half gets 3 bits."""
    plan = TwoLevel()(SHAPES, Budget(2.5), SCORES)
    assert plan.layers["L"].gate_up == (2, 3, 2, 3, 2, 3, 2, 3)


@pytest.mark.parametrize(
    ("levels", "bits", "high"),
    [((1, 3), 2.4, 5), ((1, 3), 2.6, 6), ((1, 3), 1.0, 0), ((1, 3), 3.0, 8), ((8, 16), 9, 1)],
)
def test_counts_round_down(levels: tuple[int, int], bits: float, high: int) -> None:
    """Between two steps the lower one is taken: a plan never exceeds its budget."""
    widths = TwoLevel(levels)(SHAPES, Budget(bits), SCORES).layers["L"].gate_up
    assert widths.count(levels[1]) == high


@pytest.mark.parametrize("levels", [(3, 2), (2, 2), (2,), (1, 2, 3), (2, 5), (0, 1)])
def test_levels_must_be_two_ascending_widths(levels: tuple[int, ...]) -> None:
    """Levels that the format lacks, or that are not two, are refused with the value."""
    with pytest.raises(ValueError, match="two ascending widths"):
        TwoLevel(levels)


@pytest.mark.parametrize("bits", [1.9, 3.1])
def test_unreachable_budget(bits: float) -> None:
    """The levels' interval is in the message."""
    with pytest.raises(BudgetInfeasible, match=r"\[2, 3\]"):
        TwoLevel()(SHAPES, Budget(bits), SCORES)
