"""From a ranking to widths."""

from __future__ import annotations

import pytest

from moesaic.allocate.ranks import affordable_bits, check_reachable, plan_by_rank, two_level_counts
from moesaic.errors import BudgetInfeasible, InvalidPlan
from moesaic.records import Budget, LayerShape, Scores

SHAPES = [LayerShape("a", 4, 20, 10), LayerShape("b", 2, 20, 10)]


@pytest.mark.parametrize(
    ("bits", "experts", "wanted"), [(2.3, 10, 23), (2.1, 3, 6), (2.5, 8, 20), (2.49, 8, 19), (1.1, 10, 11), (3, 7, 21)]
)
def test_affordable_bits_forgive_binary_fractions(bits: float, experts: int, wanted: int) -> None:
    """2.3 over 10 experts is 23 bits though the product is a hair below."""
    assert affordable_bits(Budget(bits), experts) == wanted


def test_two_level_counts_never_round_up() -> None:
    """2.4 bits over 8 experts with widths 1 and 3 pays for 5 high ones (2.25), where rounding to 6 is 2.5."""
    assert two_level_counts(8, Budget(2.4), 1, 3) == {3: 5, 1: 3}


def test_counts_stay_between_none_and_all() -> None:
    """Budgets beyond the levels give all or none, never a negative number."""
    assert two_level_counts(4, Budget(16), 1, 2) == {2: 4, 1: 0}
    assert two_level_counts(4, Budget(1), 2, 3) == {3: 0, 2: 4}


def test_best_scores_get_the_widest_and_ties_go_by_index() -> None:
    """Scores 5 7 7 1 rank experts 1, 2, 0, 3."""
    scores = Scores("r", {"a": (5.0, 7.0, 7.0, 1.0), "b": (0.0, 0.0)})
    plan = plan_by_rank(SHAPES, Budget(2), scores, method="m", counts=lambda n: {3: 1, 2: n - 2, 1: 1})
    assert plan.layers["a"].gate_up == (2, 3, 2, 1)
    assert plan.layers["b"].gate_up == (3, 1)
    assert plan.layers["a"].down == plan.layers["a"].gate_up
    assert plan.method == "r, m"
    assert plan.requested_bits == 2


@pytest.mark.parametrize("layers", [{"a": (1.0,) * 4}, {"a": (1.0,) * 4, "b": (1.0,) * 3}])
def test_scores_of_another_model_are_refused(layers: dict[str, tuple[float, ...]]) -> None:
    """A missing layer or another number of experts names the layer."""
    with pytest.raises(InvalidPlan, match="for b, the model has 2"):
        plan_by_rank(SHAPES, Budget(2), Scores("r", layers), method="m", counts=lambda n: {2: n})


def test_without_scores_all_are_alike() -> None:
    """No scores: index decides."""
    plan = plan_by_rank(SHAPES, Budget(2), None, method="m", counts=lambda n: {3: 1, 1: n - 1})
    assert plan.layers["a"].gate_up == (3, 1, 1, 1)
    assert plan.method == "m"


def test_reachable_interval_is_closed() -> None:
    """Both ends of the interval can be had, what lies outside names it."""
    check_reachable(Budget(2), 2, 3, levels=(2, 3))
    check_reachable(Budget(3), 2, 3, levels=(2, 3))
    for bits in (1.999, 3.001):
        with pytest.raises(BudgetInfeasible, match=r"levels 2, 3: the reachable interval is \[2, 3\]"):
            check_reachable(Budget(bits), 2, 3, levels=(2, 3))
