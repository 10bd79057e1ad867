"""Allocators: importance or costs and a budget in, a bit plan out. One a file, one line here."""

from __future__ import annotations

from collections.abc import Callable

from moesaic.allocate._protocol import Allocator as Allocator
from moesaic.allocate._protocol import Importance as Importance
from moesaic.allocate._protocol import InBytes as InBytes
from moesaic.allocate._protocol import in_bytes as in_bytes
from moesaic.allocate._protocol import needs_costs as needs_costs
from moesaic.allocate._protocol import needs_scores as needs_scores
from moesaic.allocate._protocol import only_budgets as only_budgets
from moesaic.allocate.global_milp import GlobalMilp as GlobalMilp
from moesaic.allocate.per_matrix import PerMatrix as PerMatrix
from moesaic.allocate.pmq import Pmq as Pmq
from moesaic.allocate.three_level import ThreeLevel as ThreeLevel
from moesaic.allocate.two_level import TwoLevel as TwoLevel
from moesaic.allocate.uniform import Uniform as Uniform
from moesaic.errors import BudgetInfeasible
from moesaic.records import WIDTHS, Budget

ALLOCATORS: dict[str, Callable[..., Allocator]] = {
    "uniform": Uniform,
    "two_level": TwoLevel,
    "three_level": ThreeLevel,
    "pmq": Pmq,
    "global": GlobalMilp,
}


def default_allocator(budget: Budget) -> Allocator:
    """The paper's choice for a budget: levels 1/2/3 up to 3 bits, above that the two widths around the budget.

    Raises:
        BudgetInfeasible: with the reachable interval.
    """
    lowest, highest = WIDTHS[0], WIDTHS[-1]
    if not lowest <= budget.bits <= highest:
        raise BudgetInfeasible(
            f"--bits {budget.bits:g} is out of reach: the reachable interval is [{lowest}, {highest}]",
            (lowest, highest),
        )
    if budget.bits <= 3:
        return ThreeLevel()
    if budget.bits in WIDTHS:
        return Uniform()
    high = next(width for width in WIDTHS if width > budget.bits)
    return TwoLevel(levels=(WIDTHS[WIDTHS.index(high) - 1], high))
