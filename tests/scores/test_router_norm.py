"""Router norm, by hand."""

from __future__ import annotations

import pytest
import torch

from moesaic.scores.router_norm import RouterNorm, router_norms
from tests.scores.made_up import MadeUp

FINAL = torch.tensor([[3.0, 4.0], [0.0, 2.0], [6.0, 8.0]])
INITIAL = torch.tensor([[0.0, 4.0], [1.0, 0.0], [0.0, 9.0]])


def test_final_norm_alone_by_hand() -> None:
    """Without the initial router the score is minus the norm, and the details say so."""
    scores = RouterNorm()(MadeUp({"L": FINAL}))
    assert scores.layers["L"] == (-5.0, -2.0, -10.0)
    assert "final norm" in scores.details["router_norm_form"]


def test_change_is_the_difference_of_norms() -> None:
    """With the initial router the score is minus (5 - 4, 2 - 1, 10 - 9), not the norm of the difference."""
    scores = RouterNorm()(MadeUp({"L": FINAL}, initial={"L": INITIAL}))
    assert scores.layers["L"] == (-1.0, -1.0, -1.0)
    assert "change" in scores.details["router_norm_form"]


def test_change_is_signed() -> None:
    """An expert whose norm shrank changed less than one whose norm stayed: it comes first."""
    scores = RouterNorm()(MadeUp({"L": FINAL[:2]}, initial={"L": FINAL[[1, 1]] * 2.0}))
    assert scores.layers["L"] == (-1.0, 2.0)


def test_use_initial_false_ignores_the_initial_router() -> None:
    """The knob changes the result and the words."""
    scores = RouterNorm(use_initial=False)(MadeUp({"L": FINAL}, initial={"L": INITIAL}))
    assert scores.layers["L"] == (-5.0, -2.0, -10.0)
    assert "final norm" in scores.details["router_norm_form"]


def test_reads_routers_only() -> None:
    """The rule's point is that it costs nothing: no expert weight is asked for."""
    weights = MadeUp({"L": FINAL, "M": FINAL})
    RouterNorm()(weights)
    assert weights.asked == ["router", "router"]


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_do_not_overflow(size: float) -> None:
    """Squares are taken in float64, so that small and large routers keep their order."""
    norms = router_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * size)
    assert norms.dtype == torch.float64
    assert norms.tolist() == pytest.approx([5 * size, 0.0], rel=1e-6)
