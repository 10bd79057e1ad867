"""The multiple-choice knapsack over all layers: near-optimal, and it says how near.

    minimise    sum_i cost[i, x_i]
    subject to  sum_i usage[i, x_i] <= limit,  every layer has at least required[k] experts with choice k.

With a price `p` for the budget (Lagrange; Everett 1963), `L(p) = min (sum_i cost + p * usage) - p * limit` falls apart
into layers, and is a lower bound of the optimum for every `p >= 0`. The best price is found by intersecting the lines
of two solutions, one above the budget and one within it. What is left of the budget is then spent by exchanging one or
two experts at a time, as long as that helps. The requirements of a layer are an assignment problem, solved exactly, so
that the bound is that of the linear relaxation.

Cost: some twenty passes over `[experts, widths]`; 48 128 experts with 4 widths take a second or two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

from moesaic.allocate.choices import Costs, Whole

_PRICES = 200  # at most; the intersections end by themselves, most often after ten to thirty
_CANDIDATES = 1200  # moves looked at in a round of repair: their pairs are a matrix
_ROUNDS = 100


@dataclass(frozen=True)
class Knapsack:
    """The problem.

    Attributes:
        cost: `[experts, widths]`.
        usage: `[experts, widths]`, ascending in the width, not negative.
        layer: number of the layer of each expert `[experts]`, ascending from 0.
        limit: the most that may be used; at least what `required` needs.
        required: the smallest number of experts with each width, in every layer `[widths]`.
    """

    cost: Costs
    usage: Whole
    layer: Whole
    limit: int
    required: tuple[int, ...]

    def value(self, places: Whole) -> float:
        """What a choice costs, correctly rounded."""
        return math.fsum(self.cost[np.arange(len(places)), places])

    def settled(self, value: float, bound: float) -> float:
        """The bound, or the value itself where the two differ by no more than the rounding of such sums."""
        rounding = 1e-13 * float(np.abs(self.cost).max(axis=1).sum())
        return value if value - bound <= rounding else bound

    def used(self, places: Whole) -> int:
        """What a choice uses."""
        return self.used_by(np.arange(len(places)), places)

    def used_by(self, experts: Whole, places: Whole) -> int:
        """What a choice for some of the experts uses."""
        return int(self.usage[experts, places].sum())

    def counts(self, places: Whole) -> Whole:
        """How many experts of each layer have each width. `[layers, widths]`"""
        return self.counts_of(np.arange(len(places)), places)

    def counts_of(self, experts: Whole, places: Whole) -> Whole:
        """The same, among some of the experts. `[layers, widths]`"""
        found = np.zeros((int(self.layer[-1]) + 1, self.cost.shape[1]), dtype=np.int64)
        np.add.at(found, (self.layer[experts], places), 1)
        return found

    def feasible(self, places: Whole) -> bool:
        """Whether a choice keeps the limit and the requirements."""
        return self.used(places) <= self.limit and bool((self.counts(places) >= np.array(self.required)).all())


@dataclass(frozen=True)
class Solution:
    """A feasible choice and how good it is.

    Attributes:
        places: each expert's column `[experts]`.
        value: what it costs.
        bound: no choice costs less.
        price: what a unit of the limit is worth.
    """

    places: Whole
    value: float
    bound: float
    price: float

    @property
    def gap(self) -> float:
        """`(value - bound) / |value|`: how far, at most, the choice is from the optimum. Never negative."""
        size = max(abs(self.value), abs(self.bound))
        return max(0.0, (self.value - self.bound) / size) if size > 0 else 0.0


@dataclass(frozen=True)
class _Priced:
    """The best choice at a price: `cost + price * usage` is smallest, the limit aside."""

    places: Whole
    value: float
    used: int

    def bound(self, price: float, limit: int) -> float:
        """Its line at a price; at its own price a lower bound of the optimum."""
        return self.value + price * (self.used - limit)


def solve_by_price(problem: Knapsack) -> Solution:
    """Solve approximately; see the top of this file."""
    within, beyond, price, bound = _best_price(problem)
    places = within.places.copy()
    if beyond is not None:
        _move_towards(problem, places, beyond.places)
        places = _repair(problem, places, price, bound)
    places = _drop_idle_bits(problem, places)
    value = problem.value(places)
    return Solution(places, value, problem.settled(value, bound), price)


def reduced_costs(problem: Knapsack, price: float) -> tuple[Costs, Costs]:
    """What it costs at a price to give an expert a width other than its best.

    Returns:
        `[experts, widths]`, zero at the best; and for each layer what its requirements cost on top `[layers]`.
    """
    priced = problem.cost + price * problem.usage
    regret = priced - priced.min(axis=1, keepdims=True)
    return regret, np.array([cost for _, _, cost in _assignments(problem, regret)])


def _best_price(problem: Knapsack) -> tuple[_Priced, _Priced | None, float, float]:
    """The price at which the lower bound is highest.

    Returns:
        The best choice within the limit at that price, one beyond it (None where the limit does not bind), the price,
        and the bound.
    """
    beyond = _at_price(problem, 0.0)
    if beyond.used <= problem.limit:
        return beyond, None, 0.0, beyond.bound(0.0, problem.limit)
    high = _high_price(problem)
    within = _at_price(problem, high)
    best, bound = high, within.bound(high, problem.limit)
    for _ in range(_PRICES):
        price = max(0.0, (within.value - beyond.value) / (beyond.used - within.used))
        found = _at_price(problem, price)
        line = found.bound(price, problem.limit)
        if line > bound:
            best, bound = price, line
        if found.used <= problem.limit:
            ended, within = found.used == within.used, found if found.value < within.value else within
        else:
            ended, beyond = found.used == beyond.used, found
        if ended:
            break
    return within, beyond, best, bound


def _high_price(problem: Knapsack) -> float:
    """A price at which no width is worth more than the one below it."""
    gains = problem.cost.max(axis=1) - problem.cost.min(axis=1)
    steps = np.diff(problem.usage, axis=1).min(axis=1)
    return float((gains / steps).max()) * 2 + 1e-300


def _at_price(problem: Knapsack, price: float) -> _Priced:
    """The choice that is best at a price; of equals the smaller width."""
    priced = problem.cost + price * problem.usage
    places = priced.argmin(axis=1)
    regret = priced - priced.min(axis=1, keepdims=True)
    for experts, slots, _ in _assignments(problem, regret):
        places[experts] = slots
    return _Priced(places, problem.value(places), problem.used(places))


def _assignments(problem: Knapsack, regret: Costs) -> Iterator[tuple[Whole, Whole, float]]:
    """For each layer the cheapest experts to meet its requirements: their numbers, their places, the cost together.

    All others may take their best: the requirements cost what the cheapest distinct experts give up.
    """
    slots = np.repeat(np.arange(len(problem.required)), problem.required)
    if not len(slots):
        empty = np.zeros(0, dtype=np.int64)
        yield from ((empty, empty, 0.0) for _ in range(int(problem.layer[-1]) + 1))
        return
    starts = np.searchsorted(problem.layer, np.arange(int(problem.layer[-1]) + 2))
    for first, end in pairwise(starts):
        paid = regret[first:end][:, slots].T  # (slots, experts of the layer)
        chosen, experts = linear_sum_assignment(paid)
        yield first + experts, slots[chosen], float(paid[chosen, experts].sum())


def _move_towards(problem: Knapsack, places: Whole, aim: Whole) -> None:
    """Change `places` in place, expert by expert, into a choice beyond the limit, as far as the limit allows."""
    room = problem.limit - problem.used(places)
    counts = problem.counts(places)
    for expert in np.flatnonzero(places != aim):
        before, after, layer = places[expert], aim[expert], problem.layer[expert]
        used = problem.usage[expert, after] - problem.usage[expert, before]
        if used <= room and counts[layer, before] > problem.required[before]:
            places[expert] = after
            room -= used
            counts[layer, before] -= 1
            counts[layer, after] += 1


def _repair(problem: Knapsack, places: Whole, price: float, bound: float) -> Whole:
    """Exchange one or two experts at a time as long as the cost falls."""
    priced = problem.cost + price * problem.usage
    everyone = np.arange(len(places))
    for _ in range(_ROUNDS):
        regret = priced - priced[everyone, places][:, None]
        moves = _promising(regret, places, problem.value(places) - bound)
        found = _best_exchange(problem, places, *moves)
        if found is None:
            break
        places = found
    return places


def _promising(regret: Costs, places: Whole, gap: float) -> tuple[Whole, Whole]:
    """The moves that lose least at the price; one that loses more than the gap cannot be part of an improvement."""
    allowed = regret <= gap
    allowed[np.arange(len(places)), places] = False
    experts, columns = np.nonzero(allowed)
    if len(experts) > _CANDIDATES:
        kept = np.sort(np.argsort(regret[experts, columns], kind="stable")[:_CANDIDATES])
        experts, columns = experts[kept], columns[kept]
    return experts, columns


def _best_exchange(problem: Knapsack, places: Whole, experts: Whole, columns: Whole) -> Whole | None:
    """The single move or the pair of moves that saves most, None where none saves."""
    now = places[experts]
    saved = problem.cost[experts, now] - problem.cost[experts, columns]
    used = problem.usage[experts, columns] - problem.usage[experts, now]
    room = problem.limit - problem.used(places)
    total = saved[:, None] + saved[None, :]
    total[(used[:, None] + used[None, :] > room) | (experts[:, None] == experts[None, :])] = -np.inf
    np.fill_diagonal(total, np.where(used <= room, saved, -np.inf))
    smallest = 1e-13 * abs(problem.value(places))
    flat = np.flatnonzero(np.triu(total) > smallest)
    for pair in flat[np.argsort(-total.ravel()[flat], kind="stable")][:64]:
        chosen = list(np.unravel_index(pair, total.shape))
        after = places.copy()
        after[experts[chosen]] = columns[chosen]
        if problem.feasible(after):
            return after
    return None


def _drop_idle_bits(problem: Knapsack, places: Whole) -> Whole:
    """Give an expert a smaller width where that costs no more, the smallest first."""
    lean, counts = places.copy(), problem.counts(places)
    costs = problem.cost[np.arange(len(places)), places]
    for expert in np.flatnonzero((problem.cost <= costs[:, None]).argmax(axis=1) < places):
        before, layer = lean[expert], problem.layer[expert]
        after = int((problem.cost[expert] <= costs[expert]).argmax())
        if counts[layer, before] > problem.required[before]:
            lean[expert] = after
            counts[layer, before] -= 1
            counts[layer, after] += 1
    return lean
