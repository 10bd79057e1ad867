"""One program over all layers, against published optima and against looking at every plan."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.allocate.test_knapsack import WIDTHS, knapsack, made_up
from tests.oracles.allocation import enough_of_each, global_plans, published

from moesaic.allocate import GlobalMilp
from moesaic.allocate import global_milp as module
from moesaic.allocate.choices import shapes_of
from moesaic.errors import BudgetInfeasible
from moesaic.records import BitPlan, Budget, CostTable


def table(layers: list[list[list[float]]], widths: tuple[int, ...], sizes: list[int] | None = None) -> CostTable:
    """Costs of layers with numbers for names."""
    weights = {} if sizes is None else {str(layer): size for layer, size in enumerate(sizes)}
    rows = {str(layer): tuple(map(tuple, rows)) for layer, rows in enumerate(layers)}
    return CostTable("r", widths, rows, weights)


def cost_of(plan: BitPlan, costs: CostTable) -> float:
    """What a plan costs."""
    return sum(
        row[costs.bits.index(width)]
        for layer, rows in costs.layers.items()
        for row, width in zip(rows, plan.layers[layer].gate_up, strict=True)
    )


@pytest.mark.parametrize("solver", ["auto", "milp"])
@pytest.mark.parametrize("case", ["code@2.0", "general@2.5"])
def test_published_objective_of_olmoe(case: str, solver: str) -> None:
    """With one 3 and one 2 in every layer, the published objective is reached to 1e-9 in each case."""
    data = published("gemq_olmoe_1b_7b.json")["cases"][case]
    costs = table(data["cost"], (1, 2, 3))
    wanted = sum(
        row[width - 1]
        for rows, bits in zip(data["cost"], data["bits"], strict=True)
        for row, width in zip(rows, bits, strict=True)
    )
    plan = GlobalMilp(solver=solver, at_least_one=(3, 2))(shapes_of(costs), Budget(float(case.split("@")[1])), costs)
    assert cost_of(plan, costs) == pytest.approx(wanted, rel=1e-9)
    assert plan.method.endswith("gap 0)")
    assert all({2, 3} <= set(bits.gate_up) for bits in plan.layers.values())


@settings(max_examples=40, deadline=None)
@given(
    layers=st.lists(
        st.lists(st.lists(st.integers(-3, 9), min_size=3, max_size=3), min_size=2, max_size=3), min_size=1, max_size=2
    ),
    sizes=st.lists(st.sampled_from([1, 2, 3, 10_000_019, 10_000_079]), min_size=2, max_size=2),
    bits=st.floats(2.5, 4),
    at_least_one=st.sampled_from([(), (2,), (4, 1)]),
    solver=st.sampled_from(["auto", "milp"]),
)
def test_every_plan_was_considered(
    layers: list[list[list[float]]], sizes: list[int], bits: float, at_least_one: tuple[int, ...], solver: str
) -> None:
    """The plan costs as little as the best of all plans, for layers that differ in number and size of experts."""
    costs = table(layers, WIDTHS, sizes[: len(layers)])
    plan = GlobalMilp(solver=solver, at_least_one=at_least_one)(shapes_of(costs), Budget(bits), costs)
    plan.check(shapes_of(costs))
    best = min(cost for cost, _ in global_plans(layers, sizes[: len(layers)], WIDTHS, bits, at_least_one))
    assert cost_of(plan, costs) <= best + 1e-9
    assert plan.method.endswith("gap 0)")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_least_one", [(), (4, 2)])
def test_the_gap_of_the_fast_solver_is_true(seed: int, at_least_one: tuple[int, ...]) -> None:
    """The exact optimum lies between the fast solver's bound and its plan."""
    problem = knapsack(made_up(5, 16, 3, seed), [3, 5, 7, 11, 13], 2.2, at_least_one)
    fast, _ = module.solve(problem, "lagrangian")
    exact, name = module.solve(problem, "milp")
    assert name == "milp"
    assert exact.gap <= module.EXACT
    assert fast.bound <= exact.value * (1 + 1e-12)
    assert exact.value <= fast.value
    assert fast.value - exact.value <= fast.gap * abs(fast.value) * (1 + 1e-9) + 1e-15


def test_too_many_open_choices_stay_with_the_fast_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` does not hand the integer solver more than it can be expected to solve; the method says the gap."""
    problem = knapsack(made_up(5, 16, 3), [3, 5, 7, 11, 13], 2.2, ())
    assert module.solve(problem)[1] == "milp"
    monkeypatch.setattr(module, "_AUTO_CHOICES", 1)
    solution, name = module.solve(problem)
    assert name == "lagrangian"
    assert solution.gap > module.EXACT


def test_solver_is_named_in_the_plan_with_its_gap() -> None:
    """The knob `solver` shows in the method; an unknown one is refused."""
    costs = table(made_up(5, 16, 3), WIDTHS, [3, 5, 7, 11, 13])
    fast = GlobalMilp(solver="lagrangian")(shapes_of(costs), Budget(2.2), costs)
    assert "global 1/2/4 (lagrangian, gap " in fast.method
    assert not fast.method.endswith("gap 0)")
    assert GlobalMilp()(shapes_of(costs), Budget(2.2), costs).method == "r, global 1/2/4 (milp, gap 0)"
    with pytest.raises(ValueError, match="auto, milp, lagrangian"):
        GlobalMilp(solver="gurobi")


def test_levels_and_required_widths_change_the_plan() -> None:
    """The knobs `levels` and `at_least_one`."""
    costs = table([[[9.0, 5.0, 0.0], [9.0, 8.0, 7.5]], [[1.0, 0.9, 0.8], [1.0, 0.9, 0.8]]], (1, 2, 3))

    def widths(**knobs: object) -> list[tuple[int, ...]]:
        plan = GlobalMilp(**knobs)(shapes_of(costs), Budget(1.75), costs)  # type: ignore[arg-type]
        return [bits.gate_up for bits in plan.layers.values()]

    assert widths() == [(3, 2), (1, 1)]
    assert widths(levels=(1, 2)) == [(2, 2), (2, 1)]
    assert widths(at_least_one=(2,)) == [(2, 2), (2, 1)]


def test_layers_share_one_budget() -> None:
    """Bits go to the layer where they save most, counted in weights: a large expert pays for its size."""
    rows = [[4.0, 1.0]]
    even = table([rows, rows], (1, 2), [1, 1])
    sized = table([rows, rows], (1, 2), [3, 1])
    assert GlobalMilp()(shapes_of(sized), Budget(1.25), sized).layers["1"].gate_up == (2,)
    assert GlobalMilp()(shapes_of(sized), Budget(1.25), sized).layers["0"].gate_up == (1,)
    assert sum(bits.gate_up[0] for bits in GlobalMilp()(shapes_of(even), Budget(1.5), even).layers.values()) == 3


def test_costs_that_are_all_the_same_give_the_fewest_bits() -> None:
    """Bits that save nothing are not spent."""
    costs = table([[[1.0, 1.0, 1.0]] * 4], (1, 2, 3))
    assert GlobalMilp()(shapes_of(costs), Budget(3), costs).layers["0"].gate_up == (1, 1, 1, 1)


@settings(max_examples=40, deadline=None)
@given(
    layers=st.lists(
        st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=2, max_size=3), min_size=1, max_size=2
    ),
    sizes=st.lists(st.lists(st.integers(1, 99), min_size=3, max_size=3, unique=True), min_size=2, max_size=2),
    share=st.floats(0, 1),
    at_least_one=st.sampled_from([(), (2,), (4, 1)]),
)
def test_a_budget_in_bytes_is_as_exact(
    layers: list[list[list[float]]], sizes: list[list[int]], share: float, at_least_one: tuple[int, ...]
) -> None:
    """With bytes that are not proportional to the width, no plan that fits is cheaper; none fits where it refuses."""
    costs, widths = table(layers, (1, 2, 4)), (1, 2, 4)
    stored = [dict(zip(widths, sorted(each), strict=True)) for each in sizes]
    largest = sum(len(rows) * sizes_of[4] for rows, sizes_of in zip(layers, stored, strict=False))
    limit = int(share * largest)
    every_layer = [
        [bits for bits in product(widths, repeat=len(rows)) if enough_of_each(bits, at_least_one)] for rows in layers
    ]
    fitting = []
    for plan in product(*every_layer):
        if sum(stored[at][b] for at, bits in enumerate(plan) for b in bits) <= limit:
            chosen = [
                row[widths.index(width)]
                for rows, bits in zip(layers, plan, strict=True)
                for row, width in zip(rows, bits, strict=True)
            ]
            fitting.append(sum(chosen))
    allocator = GlobalMilp(at_least_one=at_least_one)

    def solve() -> BitPlan:
        return allocator.within_bytes(shapes_of(costs), limit, lambda name, width: stored[int(name)][width], costs)

    if not fitting:
        with pytest.raises(BudgetInfeasible, match="bytes are out of reach"):
            solve()
        return
    plan = solve()
    assert sum(stored[int(name)][b] for name, bits in plan.layers.items() for b in bits.gate_up) <= limit
    assert cost_of(plan, costs) == pytest.approx(min(fitting))
    assert "in bytes" in plan.method
    assert "gap 0" in plan.method


def test_raw_errors_are_weighted_first() -> None:
    """Errors with factors count as phi * w * eps^2, as in PMQ's paper."""
    factors = {"L": (1.0, 3.0)}
    raw = CostTable("r", (1, 2), {"L": ((5.0, 0.0), (4.0, 0.0))}, {}, factors, factors)
    assert GlobalMilp()(shapes_of(raw), Budget(1.5), raw).layers["L"].gate_up == (1, 2)


def test_a_budget_below_the_required_widths_is_refused() -> None:
    """The interval counts what every layer has to have."""
    costs = table([[[1.0, 1.0, 1.0]] * 4, [[1.0, 1.0, 1.0]] * 4], (1, 2, 3))
    with pytest.raises(BudgetInfeasible, match=r"\[1.75, 3\]"):
        GlobalMilp(at_least_one=(3, 2))(shapes_of(costs), Budget(1.5), costs)
