"""From a cost table to what an allocator chooses from, and back to a plan. What the allocators of costs share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from moesaic.allocate._protocol import Importance
from moesaic.errors import BudgetInfeasible, InvalidPlan, UsageError
from moesaic.records import (
    ENTRIES,
    WIDTHS,
    BitPlan,
    Budget,
    CostTable,
    LayerBits,
    LayerShape,
    entry_layer,
    layer_of_entry,
)

Costs = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def shapes_of(costs: CostTable) -> list[LayerShape]:
    """The MoE layers as a cost table knows them; experts of one weight where it does not say their size.

    Where costs are of whole experts, plans give both entries one width, so that all weights are put down to the first.

    Raises:
        InvalidPlan: costs of one entry without those of the other.
    """
    if costs.per_matrix:
        return _shapes_of_entries(costs)
    return [LayerShape(layer, len(rows), costs.weights.get(layer, 1), 0) for layer, rows in costs.layers.items()]


def _shapes_of_entries(costs: CostTable) -> list[LayerShape]:
    shapes = []
    for layer in dict.fromkeys(map(layer_of_entry, costs.layers)):
        names = [entry_layer(layer, entry) for entry in ENTRIES]
        counts = [len(costs.layers.get(name, ())) for name in names]
        if counts[0] != counts[1]:
            raise InvalidPlan(f"the costs have {counts[0]} experts for {names[0]} and {counts[1]} for {names[1]}")
        shapes.append(LayerShape(layer, counts[0], *(costs.weights.get(name, 1) for name in names)))
    return shapes


def demand_costs(given: Importance, shapes: list[LayerShape], method: str) -> CostTable:
    """Make sure that costs were given, and those of this model.

    Raises:
        UsageError: scores, or nothing.
        InvalidPlan: costs of another model.
    """
    if not isinstance(given, CostTable):
        what = "nothing" if given is None else f"scores ({given.rule})"
        raise UsageError(f"{method} weighs errors and needs costs (docs/costs.md), but was given {what}")
    for shape in shapes:
        found = len(given.layers.get(shape.name, ()))
        if found != shape.experts:
            raise InvalidPlan(
                f"the costs have {found} experts for {shape.name}, the model has {shape.experts}: "
                "they were made for another model"
            )
    extra = set(given.layers) - {shape.name for shape in shapes}
    if extra:
        raise InvalidPlan(f"the costs name {min(extra)}, which the model does not have")
    return given


def choose_widths(costs: CostTable, levels: tuple[int, ...] | None) -> tuple[int, ...]:
    """The widths to choose from: `levels`, or all that the costs have.

    Raises:
        UsageError: a width without costs, or one that cannot be packed.
    """
    wanted = levels or costs.bits
    missing = [width for width in wanted if width not in costs.bits]
    if missing:
        raise UsageError(f"no costs for {missing[0]} bits: they are for {', '.join(map(str, costs.bits))}")
    unknown = [width for width in wanted if width not in WIDTHS]
    if unknown:
        raise UsageError(
            f"the costs have the width {unknown[0]}, which cannot be packed: choose among "
            f"{', '.join(map(str, WIDTHS))} with --levels"
        )
    return wanted


def check_levels(levels: tuple[int, ...] | None, method: str) -> None:
    """Refuse levels that no table could serve.

    Raises:
        ValueError: not ascending widths of the format.
    """
    if levels is not None and not (levels and list(levels) == sorted(set(levels)) and set(levels) <= set(WIDTHS)):
        raise ValueError(f"{method} needs ascending widths out of {WIDTHS}, got {levels}")


def required_counts(at_least_one: tuple[int, ...], widths: tuple[int, ...]) -> tuple[int, ...]:
    """How many experts of each width every layer has to have; a width that is named twice is wanted twice. `[widths]`

    Raises:
        UsageError: a width that cannot be chosen.
    """
    counts = Counter(at_least_one)
    missing = [width for width in counts if width not in widths]
    if missing:
        raise UsageError(
            f"--at-least {','.join(map(str, at_least_one))}: {missing[0]} is not one of the widths to choose from, "
            f"{', '.join(map(str, widths))}"
        )
    return tuple(counts[width] for width in widths)


def smallest_total(experts: int, widths: tuple[int, ...], required: tuple[int, ...]) -> int:
    """The fewest bits that a layer's experts can have together."""
    forced = sum(width * number for width, number in zip(widths, required, strict=True))
    return forced + (experts - sum(required)) * widths[0]


def check_room(shapes: list[LayerShape], required: tuple[int, ...]) -> None:
    """Refuse more required experts than a layer has.

    Raises:
        UsageError: with the layer.
    """
    for shape in shapes:
        if shape.experts < sum(required):
            raise UsageError(
                f"{shape.name} has {shape.experts} experts, fewer than the {sum(required)} of which --at-least fixes "
                "the width: ask for fewer, or give --at-least none"
            )


def check_interval(budget: Budget, lowest: float, widths: tuple[int, ...]) -> None:
    """Refuse a budget that cannot be met or cannot be used.

    Raises:
        BudgetInfeasible: with the reachable interval.
    """
    if not lowest - 1e-9 <= budget.bits <= widths[-1] + 1e-9:
        shown = math.ceil(lowest * 10_000 - 1e-6) / 10_000  # rounded up, so that the number shown can be used
        raise BudgetInfeasible(
            f"--bits {budget.bits:g} is out of reach with the levels {', '.join(map(str, widths))}: "
            f"the reachable interval is [{shown:g}, {widths[-1]}]",
            (shown, widths[-1]),
        )


def cost_rows(costs: CostTable, layer: str, widths: tuple[int, ...]) -> Costs:
    """A layer's costs at some of the widths. `[experts, widths]` float64"""
    columns = [costs.bits.index(width) for width in widths]
    return np.array(costs.layers[layer], dtype=np.float64)[:, columns]


def serve_equals_in_order(rows: Costs, places: Whole) -> Whole:
    """Among experts with the very same costs, the smaller index gets the larger width.

    Args:
        rows: a layer's costs `[experts, widths]`.
        places: the column that each expert got `[experts]`.
    """
    _, kind = np.unique(rows, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    served = places.copy()
    served[np.argsort(kind, kind="stable")] = places[np.lexsort((-places, kind))]
    return served


def plan_of_places(
    places: Mapping[str, Sequence[int]], widths: tuple[int, ...], budget: Budget | None, method: str
) -> BitPlan:
    """The plan in which each expert gets the width at its place in `widths`; both entries alike."""
    layers = {}
    for layer, columns in places.items():
        bits = tuple(widths[column] for column in columns)
        layers[layer] = LayerBits(gate_up=bits, down=bits)
    return BitPlan(method=method, requested_bits=None if budget is None else budget.bits, layers=layers)
