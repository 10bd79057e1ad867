"""From a ranking to widths: the first experts of a layer get the highest width, and so on down.

What the level allocators share. Every layer gets the same counts, as in Chowdhury et al. (ICLR 2026).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from moesaic.allocate._protocol import Importance
from moesaic.errors import BudgetInfeasible, InvalidPlan, UsageError
from moesaic.records import BitPlan, Budget, CostTable, LayerBits, LayerShape

Counts = dict[int, int]  # width -> number of experts


def affordable_bits(budget: Budget, experts: int) -> int:
    """The most code bits, summed over the experts of a layer, that the budget allows.

    A hair is forgiven, so that 2.3 over 10 experts is 23 and not 22.
    """
    return math.floor(budget.bits * experts + 1e-9)


def check_reachable(budget: Budget, lowest: int, highest: int, *, levels: tuple[int, ...]) -> None:
    """Refuse a budget that these levels cannot meet or cannot use.

    Raises:
        BudgetInfeasible: with the reachable interval.
    """
    if not lowest - 1e-9 <= budget.bits <= highest + 1e-9:
        raise BudgetInfeasible(
            f"--bits {budget.bits:g} is out of reach with the levels {', '.join(map(str, levels))}: "
            f"the reachable interval is [{lowest}, {highest}]",
            (lowest, highest),
        )


def two_level_counts(experts: int, budget: Budget, low: int, high: int) -> Counts:
    """How many of a layer's experts get each of two widths."""
    number = (affordable_bits(budget, experts) - low * experts) // (high - low)
    number = max(0, min(experts, number))
    return {high: number, low: experts - number}


def plan_by_rank(
    shapes: list[LayerShape],
    budget: Budget,
    scores: Importance,
    *,
    method: str,
    counts: Callable[[int], Counts],
) -> BitPlan:
    """Give each layer's experts their widths, best score first; ties go to the smaller expert index.

    Args:
        shapes: the model's MoE layers.
        budget: carried by the plan.
        scores: importance; None only where all experts get one width.
        method: the allocator's name.
        counts: number of experts of a layer -> how many of them get each width.

    Raises:
        UsageError: costs in the place of scores.
        InvalidPlan: scores of another model.
    """
    if isinstance(scores, CostTable):
        raise UsageError(
            f"{method} ranks experts and needs scores (`moesaic score`), but was given costs ({scores.rule}); "
            "the allocators for costs are pmq and global"
        )
    layers = {}
    for shape in shapes:
        values = scores.layers.get(shape.name, ()) if scores else (0.0,) * shape.experts
        if len(values) != shape.experts:
            raise InvalidPlan(
                f"the scores have {len(values)} experts for {shape.name}, the model has {shape.experts}: "
                "they were made for another model"
            )
        order = sorted(range(shape.experts), key=lambda expert: (-values[expert], expert))
        widths = [width for width, number in sorted(counts(shape.experts).items(), reverse=True) for _ in range(number)]
        bits = tuple(width for _, width in sorted(zip(order, widths, strict=True)))
        layers[shape.name] = LayerBits(gate_up=bits, down=bits)
    rule = f"{scores.rule}, {method}" if scores else method
    return BitPlan(method=rule, requested_bits=budget.bits, layers=layers)
