"""What a run is asked to do, and from the names in it to the things they name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.allocate import ALLOCATORS, Allocator, default_allocator
from moesaic.errors import UsageError
from moesaic.quantize import QUANTIZERS, Quantizer
from moesaic.quantize.grid import GROUP_SIZES
from moesaic.records import WIDTHS, Budget
from moesaic.registry import look_up
from moesaic.scores import SCORERS, Scorer


@dataclass(frozen=True)
class CompressOptions:
    """Options of `compress`. The defaults are the paper's method.

    Attributes:
        bits: average code bits over the experts; not used with `plan`.
        rule: scoring rule, a name in `scores.SCORERS`.
        allocator: a name in `allocate.ALLOCATORS`; None for the paper's choice at this budget.
        levels: the widths that the allocator may use; None for its own.
        plan: a plan file to use instead of rule and allocator.
        quantizer: a name in `quantize.QUANTIZERS`.
        group_size: 32, 64 or 128 columns share a scale.
        symmetric: grids without stored zero points.
        other_bits: width of the other linear layers (attention, shared experts, dense MLPs); 16 leaves them.
        initial: checkpoint or file with the routers before training.
        seed: of random rules.
        zeta: of the reordering by MaxVar.
        single_sweep: reorder in one sweep, as the paper's released code does.
        shard_bytes: largest size of a file of tensors.
    """

    bits: float | None = None
    rule: str = "router_norm+max_var"
    allocator: str | None = None
    levels: tuple[int, ...] | None = None
    plan: Path | None = None
    quantizer: str = "rtn"
    group_size: int = 64
    symmetric: bool = True
    other_bits: int = 4
    initial: Path | None = None
    seed: int = 0
    zeta: float = 3.0
    single_sweep: bool = False
    shard_bytes: int = 5_000_000_000

    def __post_init__(self) -> None:
        if self.other_bits not in WIDTHS:
            raise UsageError(f"--other-bits {self.other_bits}: give one of {', '.join(map(str, WIDTHS))}")
        if self.group_size not in GROUP_SIZES:
            raise UsageError(f"--group-size {self.group_size}: give one of {', '.join(map(str, GROUP_SIZES))}")
        if (self.bits is None) == (self.plan is None):
            raise UsageError("give a budget with --bits, or a plan with --plan (one of the two)")

    @property
    def budget(self) -> Budget:
        """The budget asked for.

        Raises:
            BudgetInfeasible: no plan at all could meet it.
        """
        return Budget(self.bits if self.bits is not None else WIDTHS[-1])

    def make_quantizer(self) -> Quantizer:
        """The quantizer of that name.

        Raises:
            UnknownName: with the nearest.
        """
        made = look_up(self.quantizer, QUANTIZERS, kind="quantizer", group="quantizers")
        return made(group_size=self.group_size, symmetric=self.symmetric)

    def make_allocator(self, **knobs: Any) -> Allocator:
        """The allocator of that name with those levels.

        Args:
            knobs: other fields of that allocator, such as `form="paper"` for `pmq`.

        Raises:
            UnknownName: with the nearest.
            UsageError: levels or a knob that it cannot use.
        """
        if self.allocator is None and self.levels is None and not knobs:
            return default_allocator(self.budget)
        by_count = {2: "two_level", 3: "three_level"}
        name = self.allocator or by_count.get(len(self.levels or ()), "three_level")
        made = look_up(name, ALLOCATORS, kind="allocator", group="allocators")
        known = {field.name for field in dataclasses.fields(made)} if dataclasses.is_dataclass(made) else set(knobs)
        if not set(knobs) <= known:
            raise UsageError(f"{min(set(knobs) - known)} means nothing to the allocator {name}")
        try:
            return made(levels=self.levels, **knobs) if self.levels else made(**knobs)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--levels {self.levels}: {error}" if self.levels else f"{name}: {error}") from None

    def make_scorer(self) -> Scorer:
        """The scoring rule of that name, its knobs set where it has them.

        Raises:
            UnknownName: with the nearest.
            UsageError: a knob out of range.
        """
        rule: Any = look_up(self.rule, SCORERS, kind="scoring rule", group="scores")()
        fields = {field.name for field in dataclasses.fields(rule)}
        knobs = {name: getattr(self, name) for name in ("seed", "zeta", "single_sweep") if name in fields}
        try:
            scorer: Scorer = dataclasses.replace(rule, **knobs)
        except ValueError as error:
            raise UsageError(f"--rule {self.rule}: {error}") from None
        return scorer

    def recorded(self) -> dict[str, Any]:
        """The options as they are written into the manifest: names and numbers, no paths of this machine."""
        values = dataclasses.asdict(self)
        values["plan"] = None if self.plan is None else self.plan.name
        values["initial"] = None if self.initial is None else self.initial.name
        values["levels"] = None if self.levels is None else list(self.levels)
        return values

    def recipe(self) -> dict[str, Any]:
        """The same by the names of the command line's options, those without a value left out."""
        values = self.recorded()
        values["shard_size"] = values.pop("shard_bytes") / 1e9
        return {name: value for name, value in values.items() if value is not None}
