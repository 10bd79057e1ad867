"""Budgets in bytes: stored bits per weight, or the size of the whole folder.

Neither is ever exceeded. The size of a plan is known to the byte from the headers of the checkpoint (`packing.sizes`).
An allocator that can count bytes solves its program in bytes; for the others the largest plan that fits is searched for
(`allocate.fit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from moesaic.allocate import in_bytes, only_budgets
from moesaic.allocate.fit import Fit, fit_of_bytes, largest_fit, smallest_fit
from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import BudgetInfeasible
from moesaic.options import CompressOptions
from moesaic.packing.build import PackedBuild
from moesaic.packing.names import entry_bytes
from moesaic.packing.sizes import stored_bpw
from moesaic.records import ENTRIES, BitPlan, Budget, CostTable, Scores, entry_layer, layer_of_entry


@dataclass(frozen=True)
class ByteBudget:
    """What a plan may take, and how to find out what it takes.

    Attributes:
        checkpoint: the model.
        options: with `bpw` or `size`.
        folder_of: the bytes of the folder that a build makes.
    """

    checkpoint: Checkpoint
    options: CompressOptions
    folder_of: Callable[[PackedBuild], int]

    def plan(self, scores: Scores | CostTable | None) -> BitPlan:
        """The largest plan of the allocator that fits; it says what was asked for.

        Raises:
            BudgetInfeasible: no plan fits; says what the smallest one takes.
        """
        made = self._fit(scores)
        if made.value > self.limit:
            raise BudgetInfeasible(self._too_small(made))
        return replace(made.plan, requested_bits=None, requested=self._requested())

    def _fit(self, scores: Scores | CostTable | None) -> Fit:
        shapes = [layer.shape for layer in self.checkpoint.layers]

        def allocate(bits: float) -> BitPlan:
            allocator = replace(self.options, bits=bits, bpw=None, size=None).make_allocator()
            return allocator(shapes, Budget(bits), scores)

        allocator = self.options.make_allocator()
        counting = in_bytes(allocator)
        if counting is None:
            step = 0.25 / max(shape.experts for shape in shapes)
            return largest_fit(allocate, self.measure, self.limit, step=step, only=only_budgets(allocator))
        smallest = smallest_fit(allocate, self._bytes)
        found = fit_of_bytes(
            lambda limit: counting.within_bytes(shapes, limit, self._stored, scores),
            self._bytes,
            self._limit_bytes,
            smallest,
            self._build(smallest.plan).expert_bytes(),
        )
        return replace(found, value=self.measure(found.plan))

    def _bytes(self, plan: BitPlan) -> int:
        """Bytes of what is limited: the experts, or the whole folder."""
        build = self._build(plan)
        return build.expert_bytes() if self.options.bpw is not None else self.folder_of(build)

    @property
    def _limit_bytes(self) -> float:
        weights = sum(layer.shape.experts * layer.shape.expert_weights for layer in self.checkpoint.layers)
        return self.limit * weights / 8 if self.options.bpw is not None else self.limit

    def _stored(self, name: str, width: int) -> int:
        """Bytes of one expert of a layer, or of one of its entries (`LAYER/down`)."""
        layer = next(each for each in self.checkpoint.layers if each.name == layer_of_entry(name))
        _, dtype = self.checkpoint.parameter_shape_and_dtype(layer.parameters()[0])
        made = self.options.make_quantizer()
        sizes = {
            entry: entry_bytes(layer, entry, width, group_size=made.group_size, symmetric=made.symmetric, dtype=dtype)
            for entry in ENTRIES
        }
        return sum(size for entry, size in sizes.items() if name in (layer.name, entry_layer(layer.name, entry)))

    @property
    def limit(self) -> float:
        """Stored bits per weight, or bytes."""
        return self.options.bpw if self.options.bpw is not None else float(self.options.size or 0)

    def measure(self, plan: BitPlan) -> float:
        """What a plan takes, in the unit of the limit."""
        build = self._build(plan)
        return stored_bpw(build) if self.options.bpw is not None else float(self.folder_of(build))

    def _build(self, plan: BitPlan) -> PackedBuild:
        quantizer = self.options.make_quantizer()
        options = self.options
        return PackedBuild(
            self.checkpoint, plan, quantizer, other_bits=options.other_bits, head_bits=options.head_width
        )

    def _requested(self) -> dict[str, float]:
        if self.options.bpw is not None:
            return {"bpw": self.options.bpw}
        return {"size": self.options.size or 0}

    def _too_small(self, smallest: Fit) -> str:
        if self.options.bpw is not None:
            least = math.ceil(smallest.value * 1e4) / 1e4
            return (
                f"--bpw {self.limit:g} is out of reach: the smallest plan ({smallest.plan.method}) takes {least:g} "
                "stored bits a weight, scales and padding included; give at least that, or a larger --group-size"
            )
        others = int(smallest.value) - self._build(smallest.plan).expert_bytes()
        what = f"the smallest plan ({smallest.plan.method}) makes a folder of {up_to(int(smallest.value))}"
        if others > self.limit:
            what = (
                f"all but the experts (embeddings, attention, tokenizer, ...) alone take {up_to(others)} with "
                f"--other-bits {self.options.other_bits} and --head-bits {self.options.head_width}, and {what}"
            )
        return f"--size {up_to(int(self.limit))} is out of reach: {what}; give at least that"


def up_to(size: int) -> str:
    """A number of bytes that can be given again as `--size`: rounded up to four digits."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{math.ceil(size / unit * 1000) / 1000:g}{name}"
    return f"{size}B"
