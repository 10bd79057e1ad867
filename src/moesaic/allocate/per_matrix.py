"""Widths of their own for gate_up and down: every layer is split in two, allocated, and joined again.

Gate and up lie together in the packed file and share a width. An allocator that takes experts of any number and size a
layer needs to know nothing of this: it sees twice as many layers, `NAME/gate_up` and `NAME/down`, with costs under the
same names.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.allocate._protocol import Allocator, Importance, Stored, in_bytes, needs_costs, needs_scores, only_budgets
from moesaic.errors import UsageError
from moesaic.records import ENTRIES, BitPlan, Budget, CostTable, LayerBits, LayerShape, entry_layer


@dataclass(frozen=True)
class PerMatrix:
    """An allocator's plan for each of the two entries.

    Attributes:
        base: the allocator; one with the class attribute `takes_entries = True`, as `global` and `uniform` have it.
    """

    base: Allocator

    def __post_init__(self) -> None:
        if not getattr(self.base, "takes_entries", False):
            raise UsageError(
                f"--per-matrix: {type(self.base).__name__} gives a whole expert one width; give --allocator global "
                "with a rule of costs, or uniform"
            )

    @property
    def needs_costs(self) -> bool:
        """Whether the allocator weighs costs."""
        return needs_costs(self.base)

    @property
    def needs_scores(self) -> bool:
        """Whether the allocator looks at scores or costs at all."""
        return needs_scores(self.base)

    @property
    def counts_bytes(self) -> bool:
        """Whether the allocator can keep a budget in bytes by itself."""
        return in_bytes(self.base) is not None

    @property
    def only_budgets(self) -> tuple[int, ...]:
        """The budgets that the allocator can meet, if they are few."""
        return only_budgets(self.base)

    def __call__(self, shapes: list[LayerShape], budget: Budget, scores: Importance) -> BitPlan:
        """Allocate; see `Allocator`. Costs have to be apart for the two entries.

        Raises:
            UsageError: costs of whole experts.
        """
        _check_entries(scores)
        return join_entries(self.base(split_entries(shapes), budget, scores), shapes)

    def within_bytes(self, shapes: list[LayerShape], limit: int, stored: Stored, scores: Importance) -> BitPlan:
        """The same with a budget in bytes; see `InBytes`.

        Raises:
            UsageError: costs of whole experts, or an allocator that counts code bits.
        """
        _check_entries(scores)
        base = in_bytes(self.base)
        if base is None:
            raise UsageError(f"{type(self.base).__name__} counts code bits, and no bytes")
        return join_entries(base.within_bytes(split_entries(shapes), limit, stored, scores), shapes)


def _check_entries(scores: Importance) -> None:
    if isinstance(scores, CostTable) and not scores.per_matrix:
        raise UsageError(
            f"--per-matrix: the costs ({scores.rule}) are of whole experts; measure them for gate_up and down apart"
        )


def split_entries(shapes: list[LayerShape]) -> list[LayerShape]:
    """Two layers for each: the gate_up entries of its experts, and their down entries."""
    return [
        LayerShape(entry_layer(shape.name, entry), shape.experts, weights, 0)
        for shape in shapes
        for entry, weights in zip(ENTRIES, (shape.gate_up_weights, shape.down_weights), strict=True)
    ]


def join_entries(plan: BitPlan, shapes: list[LayerShape]) -> BitPlan:
    """The plan of the layers, from one of their entries."""
    layers = {
        shape.name: LayerBits(*(plan.layers[entry_layer(shape.name, entry)].gate_up for entry in ENTRIES))
        for shape in shapes
    }
    return BitPlan(f"{plan.method}, per matrix", plan.requested_bits, layers, plan.requested)
