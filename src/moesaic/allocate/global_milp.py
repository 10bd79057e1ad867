"""One program over all layers: bits go where they save the most error (as GEMQ, ICML 2026, arXiv 2605.23078).

With `n_l` weights in an expert of layer `l`, any widths, and layers of any number and size of experts,

    minimise    sum_{l, i} cost[l, i, bits_li]
    subject to  sum_{l, i} n_l bits_li <= b * sum_{l, i} n_l

and, if asked for, a least number of experts of some widths in every layer (GEMQ's released code keeps one of 3 and one
of 2 bits: `at_least_one=(3, 2)`).

First the price of a bit is found (`knapsack.py`), which gives a plan and a lower bound. A width that at this price
loses more than plan and bound are apart cannot be in a better plan. The widths that remain are few, and go to the
integer solver (HiGHS, through `scipy.optimize.milp`). **Ties**: experts of a layer with the very same costs are served
in order of index, and no expert keeps bits that save nothing; beyond that the solver's choice, the same for the same
input.

Cost: below a second for a thousand experts, seconds for 94 layers of 512 experts and 4 widths. What was reached is in
the plan's `method`: `gap 0` or the relative distance from the lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array

from moesaic.allocate._protocol import Importance, Stored
from moesaic.allocate.choices import (
    Costs,
    Flags,
    Whole,
    check_interval,
    check_levels,
    check_room,
    choose_widths,
    cost_rows,
    demand_costs,
    plan_of_places,
    required_counts,
    serve_equals_in_order,
    smallest_total,
)
from moesaic.allocate.knapsack import Knapsack, Solution, reduced_costs, solve_by_price
from moesaic.errors import BudgetInfeasible
from moesaic.records import BitPlan, Budget, CostTable, LayerShape

SOLVERS = ("auto", "milp", "lagrangian")
EXACT = 1e-9  # relative gap that counts as none
_FACTOR_EXPONENTS = (1.0, 1.0, 2.0)  # PMQ's, of the paper
_AUTO_CHOICES = 4_000  # more open choices than these are not given to the integer solver on its own accord
_NODES = 5_000  # a limit of nodes and not of time, so that a slow machine makes the same plan
_OBJECTIVE = 1e3  # the solver's tolerances are absolute: costs are scaled so that the gap to close is about this


@dataclass(frozen=True)
class GlobalMilp:
    """The cheapest widths under one budget for the whole model.

    Attributes:
        levels: the widths to choose from, ascending; None for all that the costs have.
        at_least_one: every layer keeps an expert of each of these widths, two where one is named twice.
        solver: `milp` (exact), `lagrangian` (fast, near-optimal, says its gap), or `auto`: the integer solver where
            the first left a gap and not more than 4000 choices are open.
    """

    needs_costs: ClassVar[bool] = True
    takes_entries: ClassVar[bool] = True
    counts_bytes: ClassVar[bool] = True

    levels: tuple[int, ...] | None = None
    at_least_one: tuple[int, ...] = ()
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_levels(self.levels, "global")
        if self.solver not in SOLVERS:
            raise ValueError(f"the solver of global is one of {', '.join(SOLVERS)}, got {self.solver!r}")

    def __call__(self, shapes: list[LayerShape], budget: Budget, scores: Importance) -> BitPlan:
        """Allocate; see `Allocator`. `scores` are costs."""
        costs, widths, required = self._inputs(shapes, scores)
        check_interval(budget, _lowest_average(shapes, widths, required), widths)
        problem = make_knapsack(shapes, costs.weighted(*_FACTOR_EXPONENTS), widths, budget, required)
        return self._plan(problem, shapes, widths, f"{costs.rule}, global", budget)

    def within_bytes(self, shapes: list[LayerShape], limit: int, stored: Stored, scores: Importance) -> BitPlan:
        """The same program with bytes in the place of code bits; see `InBytes`. The gap it tells is at that limit."""
        costs, widths, required = self._inputs(shapes, scores)
        usage = [np.array([stored(shape.name, width) for width in widths], dtype=np.int64) for shape in shapes]
        floors = [_forced(shape.experts, sizes, required) for shape, sizes in zip(shapes, usage, strict=True)]
        if sum(floors) > limit:
            raise BudgetInfeasible(f"{limit} bytes are out of reach: the smallest experts take {sum(floors)}")
        counts = [shape.experts for shape in shapes]
        weighted = costs.weighted(*_FACTOR_EXPONENTS)
        problem = Knapsack(
            cost=np.concatenate([cost_rows(weighted, shape.name, widths) for shape in shapes]),
            usage=np.repeat(np.stack(usage), counts, axis=0),
            layer=np.repeat(np.arange(len(shapes)), counts),
            limit=limit,
            required=required,
        )
        return self._plan(problem, shapes, widths, f"{costs.rule}, global in bytes", None)

    def _inputs(
        self, shapes: list[LayerShape], scores: Importance
    ) -> tuple[CostTable, tuple[int, ...], tuple[int, ...]]:
        costs = demand_costs(scores, shapes, "global")
        widths = choose_widths(costs, self.levels)
        required = required_counts(self.at_least_one, widths)
        check_room(shapes, required)
        return costs, widths, required

    def _plan(
        self, problem: Knapsack, shapes: list[LayerShape], widths: tuple[int, ...], name: str, budget: Budget | None
    ) -> BitPlan:
        solution, solver = solve(problem, self.solver)
        places, first = {}, 0
        for shape in shapes:
            mine = slice(first, first + shape.experts)
            places[shape.name] = serve_equals_in_order(problem.cost[mine], solution.places[mine]).tolist()
            first += shape.experts
        gap = "0" if solution.gap <= EXACT else f"{solution.gap:.1e}"
        return plan_of_places(places, widths, budget, f"{name} {'/'.join(map(str, widths))} ({solver}, gap {gap})")


def _forced(experts: int, sizes: Whole, required: tuple[int, ...]) -> int:
    """The fewest bytes that a layer's experts can take together."""
    return int(sizes @ np.array(required)) + (experts - sum(required)) * int(sizes[0])


def _lowest_average(shapes: list[LayerShape], widths: tuple[int, ...], required: tuple[int, ...]) -> float:
    least = sum(shape.expert_weights * smallest_total(shape.experts, widths, required) for shape in shapes)
    return least / sum(shape.expert_weights * shape.experts for shape in shapes)


def make_knapsack(
    shapes: list[LayerShape], costs: CostTable, widths: tuple[int, ...], budget: Budget, required: tuple[int, ...]
) -> Knapsack:
    """The program's numbers. Usage counts in the largest unit in which every expert's weights are whole."""
    unit = math.gcd(*(shape.expert_weights for shape in shapes))
    sizes = [shape.expert_weights // unit for shape in shapes]
    counts = [shape.experts for shape in shapes]
    layer = np.repeat(np.arange(len(shapes)), counts)
    total = sum(size * count for size, count in zip(sizes, counts, strict=True))
    least = sum(size * smallest_total(count, widths, required) for size, count in zip(sizes, counts, strict=True))
    return Knapsack(
        cost=np.concatenate([cost_rows(costs, shape.name, widths) for shape in shapes]),
        usage=np.repeat(np.array(sizes, dtype=np.int64), counts)[:, None] * np.array(widths, dtype=np.int64),
        layer=layer,
        # a hair is forgiven, so that 2.3 over 10 experts is 23 and not 22
        limit=max(math.floor((budget.bits + 5e-10) * total), least),
        required=required,
    )


def solve(problem: Knapsack, solver: str = "auto") -> tuple[Solution, str]:
    """Solve the program.

    Args:
        problem: with a limit that can be met.
        solver: one of `SOLVERS`.

    Returns:
        The solution, and which solver it is from: `milp` or `lagrangian`.
    """
    start = solve_by_price(problem)
    if solver == "lagrangian" or (solver == "auto" and start.gap <= EXACT):
        return start, "lagrangian"
    open_choices = _open_choices(problem, start)
    if solver == "auto" and int(open_choices.sum()) > _AUTO_CHOICES:
        return start, "lagrangian"
    return _solve_core(problem, start, open_choices), "milp"


def _open_choices(problem: Knapsack, start: Solution) -> Flags:
    """Which widths may be in a better plan than `start`, for experts that have more than one. `[experts, widths]` bool

    At the price, a width that loses `r` makes a plan cost at least `bound - requirements of the layer + r`.
    """
    regret, demands = reduced_costs(problem, start.price)
    slack = start.value - start.bound + 1e-10 * abs(start.value)
    open_choices = regret <= slack + demands[problem.layer][:, None]
    open_choices[np.arange(len(regret)), start.places] = True
    open_choices[open_choices.sum(axis=1) == 1] = False
    return open_choices


def _solve_core(problem: Knapsack, start: Solution, open_choices: Flags) -> Solution:
    """The integer program over the open choices; the other experts stay as in `start`."""
    if not open_choices.any():  # nothing else can be better
        return Solution(start.places, start.value, start.value, start.price)
    core = _Core.of(problem, start, open_choices)
    bound, excess = start.bound, 0
    for _ in range(3):
        result = core.run(excess)
        lower = result.mip_dual_bound
        if excess == 0 and lower is not None and math.isfinite(lower):
            bound = max(bound, min(start.value, core.base + lower / core.scale))
        if result.x is None:
            break
        places = core.places_of(result.x)
        if problem.feasible(places):
            value = problem.value(places)
            better = places if value < start.value else start.places
            value = min(value, start.value)
            return Solution(better, value, problem.settled(value, min(bound, value)), start.price)
        excess += max(0, problem.used(places) - problem.limit)  # within the solver's tolerance, beyond ours
    return Solution(start.places, start.value, bound, start.price)


@dataclass(frozen=True)
class _Core:
    """The integer program over the open choices, in the form that suits the tolerances of a solver best.

    With `regret` what a choice loses at the price `p`, and `s` what is left of the limit, any choice costs
    `base + sum of regret + p s`: small numbers from 0 up, and the optimum is no more than the gap of `start`.

    Attributes:
        problem, start: as given.
        experts, columns: the open choices `[variables]`; the last variable is `s`, apart.
        loss: objective `[variables + 1]`, scaled.
        base: see above.
        scale: what costs were multiplied by.
    """

    problem: Knapsack
    start: Solution
    experts: Whole
    columns: Whole
    loss: Costs
    base: float
    scale: float

    @classmethod
    def of(cls, problem: Knapsack, start: Solution, open_choices: Flags) -> _Core:
        """The core of a problem."""
        experts, columns = np.nonzero(open_choices)
        regret, _ = reduced_costs(problem, start.price)
        left = problem.limit - problem.used(start.places)
        paid = math.fsum(regret[np.arange(len(regret)), start.places]) + start.price * left
        scale = _OBJECTIVE / (max(paid, EXACT * abs(start.value)) or 1.0)
        loss = np.append(regret[experts, columns], start.price * problem.usage.max()) * scale
        return cls(problem, start, experts, columns, loss, start.value - paid, scale)

    def run(self, excess: int) -> OptimizeResult:
        """HiGHS, with the limit lowered by `excess`: every expert one width, the limit, the requirements."""
        number, size = len(self.experts), float(self.problem.usage.max())
        closed = np.setdiff1d(np.arange(len(self.start.places)), self.experts)
        spent = self.problem.used_by(closed, self.start.places[closed])
        room = (self.problem.limit - excess - spent) / size
        _, row = np.unique(self.experts, return_inverse=True)
        one_each = csr_array((np.ones(number), (row, np.arange(number))), shape=(int(row[-1]) + 1, number + 1))
        usage = np.append(self.problem.usage[self.experts, self.columns] / size, 1.0)[None, :]
        whole = np.append(np.ones(number), 0)
        return milp(
            self.loss,
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(usage, room, room), *self._demands(closed)],
            integrality=whole,
            bounds=Bounds(0, np.where(whole, 1, np.inf)),
            options={"mip_rel_gap": self._precision(), "node_limit": _NODES},
        )

    def _precision(self) -> float:
        """The relative gap of the core that is half of `EXACT` for the whole."""
        return min(1e-1, 0.5 * EXACT * abs(self.start.value) * self.scale / _OBJECTIVE)

    def _demands(self, closed: Whole) -> list[LinearConstraint]:
        """What the layers still require, the experts that are not open counted."""
        met = self.problem.counts_of(closed, self.start.places[closed])
        missing = np.array(self.problem.required) - met
        layers, columns = np.nonzero(missing > 0)
        if not len(layers):
            return []
        serves = (self.problem.layer[self.experts] == layers[:, None]) & (self.columns == columns[:, None])
        matrix = csr_array(np.append(serves, np.zeros((len(layers), 1), dtype=bool), axis=1).astype(float))
        return [LinearConstraint(matrix, missing[layers, columns], np.inf)]

    def places_of(self, solved: Costs) -> Whole:
        """The choice that the solver's variables stand for: of each expert the one nearest to 1."""
        table = np.full(self.problem.cost.shape, -1.0)
        table[self.experts, self.columns] = solved[:-1]
        found = self.start.places.copy()
        asked = np.unique(self.experts)
        found[asked] = table[asked].argmax(axis=1)
        return found
