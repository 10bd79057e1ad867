"""One width for all."""

from __future__ import annotations

import pytest

from moesaic.allocate.uniform import Uniform
from moesaic.errors import BudgetInfeasible
from moesaic.records import WIDTHS, Budget, LayerShape

SHAPES = [LayerShape("a", 3, 20, 10), LayerShape("b", 2, 20, 10)]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_expert_gets_the_width(width: int) -> None:
    """All layers and experts alike, no scores needed."""
    plan = Uniform()(SHAPES, Budget(width))
    assert plan.layers["a"].gate_up == (width,) * 3
    assert plan.layers["b"].down == (width,) * 2
    assert plan.reached_bits(SHAPES) == width
    assert isinstance(plan.layers["a"].gate_up[0], int)


@pytest.mark.parametrize("bits", [2.5, 5, 7, 15.9])
def test_between_widths_is_refused_with_the_list(bits: float) -> None:
    """A uniform plan cannot average."""
    with pytest.raises(BudgetInfeasible, match="1, 2, 3, 4, 8, 16"):
        Uniform()(SHAPES, Budget(bits))
