"""PMQ: in every layer the cheapest widths by a 0/1 program (Huang et al., MC, ICLR 2025, arXiv 2410.06270).

For the `E` experts of a layer, with phi how often each was chosen and w its routing mass, both made to sum to 1,

    minimise    sum_i  phi_i^alpha * w_i^beta * eps[i, bits_i]^gamma
    subject to  sum_i bits_i <= floor(b E),  at least one expert of 3 and one of 2 bits.

`released`: alpha, beta, gamma = 1, 1.5, 1, what the published code minimises. `paper`: 1, 1, 2.

The program is solved exactly by dynamic programming, for any set of widths. **Ties**: of plans that cost the same, the
one with the fewest bits; of those, the one that gives the first expert the most, then the second, and so on.

Cost: `O(E * widths * states * spare bits)` a layer. Every layer has the same average, and does not know the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from moesaic.allocate._protocol import Importance
from moesaic.allocate.choices import (
    Costs,
    check_interval,
    check_levels,
    check_room,
    choose_widths,
    cost_rows,
    demand_costs,
    plan_of_places,
    required_counts,
    smallest_total,
)
from moesaic.allocate.ranks import affordable_bits
from moesaic.records import BitPlan, Budget, LayerShape

EXPONENTS = {"released": (1.0, 1.5, 1.0), "paper": (1.0, 1.0, 2.0)}
_USUAL = (3, 2)


@dataclass(frozen=True)
class Pmq:
    """The cheapest widths of every layer, each layer with the same average.

    Attributes:
        levels: the widths to choose from, ascending; None for all that the costs have.
        form: exponents of phi, w and eps: `released` (1, 1.5, 1) or `paper` (1, 1, 2). Costs without factors are
            taken as they are.
        at_least_one: every layer keeps an expert of each of these widths, two where one is named twice; None for 3
            and 2, so far as they can be chosen.
    """

    needs_costs: ClassVar[bool] = True

    levels: tuple[int, ...] | None = None
    form: str = "released"
    at_least_one: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_levels(self.levels, "pmq")
        if self.form not in EXPONENTS:
            raise ValueError(f"the form of pmq is one of {', '.join(EXPONENTS)}, got {self.form!r}")

    def __call__(self, shapes: list[LayerShape], budget: Budget, scores: Importance) -> BitPlan:
        """Allocate; see `Allocator`. `scores` are costs."""
        costs = demand_costs(scores, shapes, "pmq")
        widths = choose_widths(costs, self.levels)
        wanted = self.at_least_one
        required = required_counts(tuple(w for w in _USUAL if w in widths) if wanted is None else wanted, widths)
        check_room(shapes, required)
        lowest = max(smallest_total(shape.experts, widths, required) / shape.experts for shape in shapes)
        check_interval(budget, lowest, widths)
        finished = costs.weighted(*EXPONENTS[self.form])
        places = {}
        for shape in shapes:
            total = max(affordable_bits(budget, shape.experts), smallest_total(shape.experts, widths, required))
            places[shape.name] = cheapest_places(cost_rows(finished, shape.name, widths), widths, total, required)
        method = f"{costs.rule}, pmq {self.form if costs.raw else 'as given'} {'/'.join(map(str, widths))}"
        return plan_of_places(places, widths, budget, method)


def cheapest_places(rows: Costs, widths: tuple[int, ...], total: int, required: tuple[int, ...]) -> list[int]:
    """Solve one layer's program.

    Args:
        rows: costs `[experts, widths]`.
        widths: ascending.
        total: the most bits that the experts may have together; enough for `required`.
        required: the smallest number of experts of each width `[widths]`.

    Returns:
        Each expert's place in `widths`. `[experts]`
    """
    experts = len(rows)
    step = math.gcd(*(width - widths[0] for width in widths)) or 1
    extra = [(width - widths[0]) // step for width in widths]
    room = min((total - widths[0] * experts) // step, extra[-1] * experts)
    states = list(product(*(range(number + 1) for number in required)))  # what is still missing of each width
    after = [[_served(states, state, place) for place in range(len(widths))] for state in states]
    taken, best = _sweep(rows, extra, after, room)
    spare = int(np.argmin(best[-1]))  # the first of equal costs: the fewest bits
    places, state = [], len(states) - 1
    for expert in range(experts):
        place = int(taken[expert][state, spare])
        places.append(place)
        state, spare = after[state][place], spare - extra[place]
    return places


def _served(states: list[tuple[int, ...]], state: tuple[int, ...], place: int) -> int:
    """The state after an expert got that width."""
    return states.index(tuple(max(0, left - (at == place)) for at, left in enumerate(state)))


def _sweep(
    rows: Costs, extra: list[int], after: list[list[int]], room: int
) -> tuple[list[npt.NDArray[np.uint8]], Costs]:
    """From the last expert to the first: the least cost of the experts from here on that use exactly that much room.

    Returns:
        For each expert the place to take, by state and room `[states, room + 1]`; and the least cost from the
        first expert on `[states, room + 1]`. The last state is the one in which everything is missing.
    """
    best = np.full((len(after), room + 1), np.inf)
    best[0, 0] = 0.0
    following = np.array(after)
    taken = []
    for row in rows[::-1]:
        choice = np.zeros(best.shape, dtype=np.uint8)
        lower = np.full(best.shape, np.inf)
        for place in reversed(range(len(extra))):  # larger widths first: they win ties
            used = extra[place]
            if used > room:
                continue
            candidate = best[following[:, place], : room + 1 - used] + row[place]  # (states, room that is left)
            better = candidate < lower[:, used:]
            np.copyto(lower[:, used:], candidate, where=better)
            np.copyto(choice[:, used:], np.uint8(place), where=better)
        taken.append(choice)
        best = lower
    return taken[::-1], best
