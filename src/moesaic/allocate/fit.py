"""The largest plan whose stored size fits: a search over budgets in code bits.

Allocators count code bits. What a plan takes on the disk also has scales, zero points, padding and headers in it, which
are known exactly from the plan, but only from the plan. So plans are made for several budgets and measured. Between the
last one that fits and the first that does not, layers are taken over from the larger plan one by one as long as the
result fits. What is left unused is then less than the step of one layer, most often that of a single expert. The plan's
method says so: what an allocator claims of its own plans does not hold for such a mixture.

An allocator that keeps budgets in bytes by itself (`InBytes`) needs no such search, `fit_of_bytes` is enough.

Cost: some five to fifteen calls of the allocator; two or three for one that counts bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from moesaic.errors import BudgetInfeasible
from moesaic.records import STORED_WIDTH, BitPlan

Allocate = Callable[[float], BitPlan]  # average code bits -> plan
Measure = Callable[[BitPlan], float]
Solve = Callable[[int], BitPlan]  # bytes of the experts -> plan

_TRIES = 10  # two or three are enough
_CLOSE = 1e-3  # of the limit: as near as the budgets have to come, before layers are moved one by one


@dataclass(frozen=True)
class Fit:
    """A plan and what it takes.

    Attributes:
        plan: the plan.
        value: its measure; above the limit only if no plan fits, and then this is the smallest plan.
        bits: the budget in code bits that it was made for; NaN where it was made for bytes.
    """

    plan: BitPlan
    value: float
    bits: float


def largest_fit(allocate: Allocate, measure: Measure, limit: float, *, step: float, only: tuple[int, ...] = ()) -> Fit:
    """Find it.

    Args:
        allocate: makes a plan for a budget; the larger the budget, the larger the plan, by and large.
        measure: what a plan takes.
        limit: what it may take.
        step: budgets nearer to each other than this make nearly the same plan.
        only: the only budgets that the allocator can meet; empty where it can meet all of an interval.

    Raises:
        BudgetInfeasible: no budget at all can be met.
    """

    def at(bits: float) -> Fit:
        plan = allocate(bits)
        return Fit(plan, measure(plan), bits)

    if only:
        found = None
        for bits in sorted(only, reverse=True):
            found = at(bits)
            if found.value <= limit:
                break
        assert found is not None
        return found
    lower = _outermost(at, 1.0, end=0)
    if lower.value > limit:
        return lower
    upper = _outermost(at, float(STORED_WIDTH), end=1)
    if upper.value <= limit:
        return upper
    lower, upper = _narrowed(at, lower, upper, limit, step)
    return _moved_towards(lower, upper.plan, measure, limit)


def smallest_fit(allocate: Allocate, measure: Measure) -> Fit:
    """The smallest plan of the allocator.

    Raises:
        BudgetInfeasible: no budget at all can be met.
    """
    return _outermost(lambda bits: Fit(plan := allocate(bits), measure(plan), bits), 1.0, end=0)


def fit_of_bytes(solve: Solve, measure: Measure, limit: float, smallest: Fit, experts: float) -> Fit:
    """The plan that an allocator makes for a budget in bytes of the experts, what is beside them taken off.

    That has to be found out by trying, though it hardly changes: the header of a file names the widths that are in use.

    Args:
        solve: bytes of the experts -> plan.
        measure: bytes of all.
        limit: of all.
        smallest: the smallest plan.
        experts: bytes of its experts.
    """
    beside = smallest.value - experts
    for _ in range(_TRIES):
        try:
            plan = solve(math.floor(limit - beside))
        except BudgetInfeasible:
            break
        value = measure(plan)
        if value <= limit:
            return Fit(plan, value, math.nan)
        beside += value - limit
    return smallest


def _outermost(at: Callable[[float], Fit], bits: float, end: int) -> Fit:
    """The plan of that budget, or of the end of the allocator's interval where it cannot be met."""
    try:
        return at(bits)
    except BudgetInfeasible as error:
        if error.interval is None:
            raise
        return at(error.interval[end])


def _narrowed(at: Callable[[float], Fit], lower: Fit, upper: Fit, limit: float, step: float) -> tuple[Fit, Fit]:
    """A plan that fits and one that does not, with little between: by interpolation and halving in turn."""
    halve = False
    while upper.bits - lower.bits > step and limit - lower.value > _CLOSE * limit:
        share = 0.5 if halve else (limit - lower.value) / (upper.value - lower.value)
        found = at(lower.bits + (upper.bits - lower.bits) * min(max(share, 0.02), 0.98))
        if found.value <= limit:
            lower = found
        else:
            upper = found
        halve = not halve
    return lower, upper


def _moved_towards(start: Fit, aim: BitPlan, measure: Measure, limit: float) -> Fit:
    """Take layers over from a plan that is too large, first to last, as long as the result fits and grows."""
    found = start
    for name, bits in aim.layers.items():
        if bits == found.plan.layers[name]:
            continue
        plan = replace(found.plan, layers={**found.plan.layers, name: bits})
        value = measure(plan)
        if found.value < value <= limit:
            found = Fit(plan, value, start.bits)
    if found is start:
        return start
    return replace(found, plan=replace(found.plan, method=f"{start.plan.method}, then layers of the next larger plan"))
