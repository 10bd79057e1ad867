"""From names and numbers to rules, allocators and quantizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesaic.allocate import ALLOCATORS, GlobalMilp, ThreeLevel, TwoLevel, Uniform
from moesaic.errors import BudgetInfeasible, UnknownName, UsageError
from moesaic.options import CompressOptions
from moesaic.quantize import QUANTIZERS
from moesaic.scores import COSTS, SCORERS, AlphaTail, AlphaTailCost, FisherError, Random, Reorder, ReorderCosts


def options(**changes: Any) -> CompressOptions:
    """Options with a budget."""
    return CompressOptions(**{"bits": 2.5, **changes})


def test_the_defaults_are_the_papers_method() -> None:
    """Router norm reordered by MaxVar with zeta 3, three levels 1, 2, 3."""
    made = options()
    assert made.make_rule() == AlphaTailCost()
    assert made.make_allocator() == GlobalMilp()
    assert (made.other_bits, made.head_width) == (4, 8)


def test_the_heads_width() -> None:
    """Eight bits, unless nothing else is packed or another width is asked for; what is recorded is that width."""
    assert options(other_bits=16).head_width == 16
    assert options(other_bits=16, head_bits=8).head_width == 8
    assert options(head_bits=16).head_width == 16
    assert options().recorded()["head_bits"] == 8


def test_the_method_of_router_norms() -> None:
    """By its name the method of Chowdhury et al. is had with its own levels and its own zeta."""
    made = options(rule="router_norm+max_var")
    scorer = made.make_rule()
    assert isinstance(scorer, Reorder)
    assert scorer.zeta == 3
    assert not scorer.single_sweep
    assert made.make_allocator() == ThreeLevel(levels=(1, 2, 3))


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_every_rule_can_be_made(name: str) -> None:
    """Each registered name gives a rule."""
    assert callable(options(rule=name).make_rule())


@pytest.mark.parametrize("name", sorted(COSTS))
def test_every_rule_of_costs_can_be_made(name: str) -> None:
    """Each registered name gives a rule where the allocator wants costs."""
    assert callable(options(rule=name, allocator="global").make_rule())


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_quantizer_gets_the_grid(name: str, symmetric: bool) -> None:
    """Each registered name gives a quantizer of the grid asked for."""
    made = options(quantizer=name, group_size=32, symmetric=symmetric).make_quantizer()
    assert (made.group_size, made.symmetric) == (32, symmetric)


@pytest.mark.parametrize("name", sorted(ALLOCATORS))
def test_every_allocator_can_be_made(name: str) -> None:
    """Each registered name gives an allocator."""
    assert callable(options(allocator=name).make_allocator())


def test_knobs_reach_the_rule_that_has_them() -> None:
    """Seed, zeta and single sweep go to the rules with a field of that name."""
    assert options(rule="random", seed=7).make_rule() == Random(seed=7)
    reorder = options(rule="router_norm+max_var", zeta=2.0, single_sweep=True).make_rule()
    assert isinstance(reorder, Reorder)
    assert (reorder.zeta, reorder.single_sweep) == (2, True)


def test_knobs_reach_the_rules_inside_a_rule() -> None:
    """A random ranking under MaxVar follows the seed, costs under MaxVar get zeta; widths go to costs without data."""
    inside = options(rule="random+max_var", seed=7).make_rule()
    assert isinstance(inside, Reorder)
    assert inside.base == Random(seed=7)
    lifted = options(rule="alpha_tail+max_var", allocator="global", zeta=2.0, levels=(2, 4)).make_rule()
    assert isinstance(lifted, ReorderCosts)
    assert lifted.zeta == 2
    assert lifted.base == AlphaTailCost(bits=(2, 4))


def test_the_allocator_says_whether_a_rule_scores_or_costs() -> None:
    """A name that is both is what the allocator needs; without one, a rule that has costs goes to the global one."""
    assert isinstance(options(rule="alpha_tail", allocator="three_level").make_rule(), AlphaTail)
    assert isinstance(options(rule="alpha_tail").make_rule(), AlphaTailCost)
    assert isinstance(options(rule="alpha_tail", allocator="pmq").make_rule(), AlphaTailCost)
    assert isinstance(options(rule="fisher_error").make_allocator(), GlobalMilp)
    assert options(rule="fisher_error", levels=(2, 4)).make_allocator() == GlobalMilp(levels=(2, 4))
    assert isinstance(options(rule="fisher_error", bits=2, allocator="uniform").make_rule(), FisherError)


@pytest.mark.parametrize(
    ("rule", "allocator", "words"),
    [
        ("fisher_error", "two_level", "ranks by scores: give one of pmq, global"),
        ("router_norm", "pmq", "give a rule of costs"),
        ("quant_eror", "pmq", "did you mean 'quant_error'"),
    ],
)
def test_a_rule_of_the_wrong_kind_is_refused(rule: str, allocator: str, words: str) -> None:
    """Scores where costs are needed, costs where scores are needed, and names that are neither."""
    with pytest.raises(UsageError, match=words):
        options(rule=rule, allocator=allocator).make_rule()


@pytest.mark.parametrize(
    ("levels", "allocator"), [((2, 4), TwoLevel(levels=(2, 4))), ((2, 3, 4), ThreeLevel(levels=(2, 3, 4)))]
)
def test_levels_choose_the_allocator(levels: tuple[int, ...], allocator: object) -> None:
    """Two levels mean two_level, three mean three_level."""
    assert options(rule="router_norm", levels=levels).make_allocator() == allocator


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
def test_a_width_as_budget(bits: int) -> None:
    """At a width above 3 every expert gets that width."""
    assert bits <= 3 or isinstance(options(rule="router_norm", bits=bits).make_allocator(), Uniform)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": None},
        {"plan": Path("plan.json")},
        {"other_bits": 5},
        {"head_bits": 5},
        {"group_size": 48},
    ],
)
def test_contradictions_are_refused_at_once(changes: dict[str, Any]) -> None:
    """Options that cannot be are refused when they are made."""
    with pytest.raises(UsageError):
        options(**changes)


@pytest.mark.parametrize(
    ("changes", "make", "nearest"),
    [
        ({"rule": "router-norm"}, "make_rule", "router_norm"),
        ({"allocator": "unifrom"}, "make_allocator", "uniform"),
        ({"quantizer": "hqqq"}, "make_quantizer", "hqq"),
    ],
)
def test_unknown_names(changes: dict[str, Any], make: str, nearest: str) -> None:
    """An unknown name is answered with the nearest."""
    with pytest.raises(UnknownName, match=f"did you mean '{nearest}'"):
        getattr(options(**changes), make)()


def test_levels_for_an_allocator_without() -> None:
    """The message is about the option, and not about the code."""
    with pytest.raises(UsageError, match="--levels means nothing to the allocator uniform"):
        options(levels=(2, 3), allocator="uniform").make_allocator()


@pytest.mark.parametrize("levels", [(2,), (3, 2), (2, 5), (1, 2, 4), (1, 2, 3, 4), (0, 2)])
def test_impossible_levels(levels: tuple[int, ...]) -> None:
    """Levels that no allocator takes are refused by the option's name."""
    with pytest.raises(UsageError, match="--levels"):
        options(rule="router_norm", levels=levels).make_allocator()


def test_a_rules_knob_out_of_range() -> None:
    """A zeta that would make the reordering run in circles is refused."""
    with pytest.raises(UsageError, match="zeta"):
        options(rule="router_norm+max_var", zeta=1.0).make_rule()


@pytest.mark.parametrize("bits", [0, -1, 16.5, float("nan"), float("inf")])
def test_budgets_out_of_reach(bits: float) -> None:
    """No plan has such an average."""
    with pytest.raises(BudgetInfeasible):
        options(bits=bits).make_allocator()


def test_the_record_has_no_paths_of_this_machine(tmp_path: Path) -> None:
    """What is written into the output names files, not where they lay, and is JSON."""
    made = CompressOptions(plan=tmp_path / "plan.json", initial=tmp_path / "start", levels=(2, 3))
    recorded = made.recorded()
    assert (recorded["plan"], recorded["initial"], recorded["levels"]) == ("plan.json", "start", [2, 3])
    assert str(tmp_path) not in json.dumps(recorded)
