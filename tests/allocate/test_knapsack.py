"""The fast road: its plans keep the limits, and its gap is true."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.allocation import global_plans

from moesaic.allocate.choices import required_counts, shapes_of
from moesaic.allocate.global_milp import make_knapsack
from moesaic.allocate.knapsack import Knapsack, Solution, reduced_costs, solve_by_price
from moesaic.records import Budget, CostTable

WIDTHS = (1, 2, 4)


def knapsack(layers: list[list[list[float]]], sizes: list[int], bits: float, at_least_one: tuple[int, ...]) -> Knapsack:
    """The program of some layers."""
    names = [str(layer) for layer in range(len(layers))]
    costs = CostTable(
        "r",
        WIDTHS,
        {name: tuple(map(tuple, rows)) for name, rows in zip(names, layers, strict=True)},
        dict(zip(names, sizes, strict=True)),
    )
    return make_knapsack(shapes_of(costs), costs, WIDTHS, Budget(bits), required_counts(at_least_one, WIDTHS))


def made_up(layers: int, experts: int, widths: int, seed: int = 0) -> list[list[list[float]]]:
    """Costs that fall about fourfold a bit, of experts whose importance spans orders of magnitude."""
    generator = np.random.default_rng(seed)
    weight = np.exp(generator.normal(0, 2, (layers, experts, 1)))
    noise = np.exp(generator.normal(0, 0.3, (layers, experts, widths)))
    made: list[list[list[float]]] = (weight * 4.0 ** -np.arange(1, widths + 1) * noise).tolist()
    return made


@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(
        st.lists(st.lists(st.integers(-3, 9), min_size=3, max_size=3), min_size=2, max_size=3), min_size=1, max_size=2
    ),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=2),
    bits=st.floats(2.5, 4),
    at_least_one=st.sampled_from([(), (2,), (4, 1)]),
)
def test_bound_optimum_and_plan_are_in_order(
    layers: list[list[list[float]]], sizes: list[int], bits: float, at_least_one: tuple[int, ...]
) -> None:
    """The bound is below the best of all plans, and that is not above the plan that was found."""
    problem = knapsack(layers, sizes[: len(layers)], bits, at_least_one)
    solution = solve_by_price(problem)
    best = min(cost for cost, _ in global_plans(layers, sizes[: len(layers)], WIDTHS, bits, at_least_one))
    assert problem.feasible(solution.places)
    assert solution.value == problem.value(solution.places)
    assert solution.bound - 1e-9 <= best <= solution.value + 1e-9
    assert solution.gap >= 0


def test_gap_by_hand() -> None:
    """The gap is relative to the larger of value and bound, zero for nothing at all, and never negative."""
    places = np.zeros(1, dtype=np.int64)
    assert Solution(places, 10.0, 9.0, 0.0).gap == pytest.approx(0.1)
    assert Solution(places, -9.0, -10.0, 0.0).gap == pytest.approx(0.1)
    assert Solution(places, 0.0, 0.0, 0.0).gap == 0
    assert Solution(places, 1.0, 1.1, 0.0).gap == 0


def test_a_limit_that_does_not_bind_costs_nothing() -> None:
    """With room for everything each expert gets its cheapest width, the smallest of equals, at price 0."""
    problem = knapsack([[[3.0, 1.0, 1.0], [0.0, 0.0, 5.0]]], [1], 4, ())
    solution = solve_by_price(problem)
    assert (solution.places.tolist(), solution.price, solution.gap) == ([1, 0], 0.0, 0.0)


def test_requirements_take_the_experts_that_lose_least() -> None:
    """A required width goes to the expert for which it costs least, and bits that save nothing are given back."""
    problem = knapsack([[[1.0, 9.0, 9.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]], [1], 4, (2,))
    assert solve_by_price(problem).places.tolist() == [0, 0, 1]


def test_reduced_costs_of_the_best_are_zero() -> None:
    """At any price the best width of an expert loses nothing, and requirements that are met cost nothing."""
    problem = knapsack(made_up(2, 8, 3), [1, 3], 2, ())
    regret, demands = reduced_costs(problem, 0.3)
    assert (regret.min(axis=1) == 0).all()
    assert demands.tolist() == [0, 0]


def test_ninety_four_layers_of_five_hundred_and_twelve() -> None:
    """The largest models there are take seconds, and the gap that is left is tiny; the time is printed, not tested."""
    costs = np.array(made_up(94, 512, 4)).reshape(-1, 4)
    usage = np.tile(np.arange(1, 5), (len(costs), 1))
    problem = Knapsack(costs, usage, np.repeat(np.arange(94), 512), int(2.37 * len(costs)), (0, 1, 1, 0))
    start = time.perf_counter()
    solution = solve_by_price(problem)
    print(f"94 x 512 x 4: {time.perf_counter() - start:.2f} s, gap {solution.gap:.1e}")
    assert problem.feasible(solution.places)
    assert solution.gap < 1e-6
