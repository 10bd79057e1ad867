"""What a run is asked to do, and from the names in it to the things they name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.allocate import ALLOCATORS, Allocator, PerMatrix, default_allocator, needs_costs, needs_scores
from moesaic.calibrate.meter import ErrorMeter
from moesaic.calibrate.text import CalibrationText
from moesaic.errors import UsageError
from moesaic.quantize import QUANTIZERS, RTN, Quantizer, needs_moment
from moesaic.quantize.grid import GROUP_SIZES
from moesaic.records import PACKED_WIDTHS, STORED_WIDTH, WIDTHS, Budget
from moesaic.registry import look_up
from moesaic.scores import COSTS, SCORERS, CostRule, Scorer, needs_errors, needs_stats

MEASURED_WIDTHS = (1, 2, 3, 4)  # at which errors are measured where no levels are named

_USUAL_BITS = 2.5
_USUAL_HEAD = 8  # its errors go straight into the logits, and a byte is half of what every token would read


@dataclass(frozen=True)
class CompressOptions:
    """Options of `compress`. The defaults are what did best without data (docs/evidence.md).

    Attributes:
        bits: average code bits over the experts. Of `bits`, `bpw`, `size` and `plan` exactly one is given.
        bpw: stored bits per weight of the experts, scales and padding included, that may not be exceeded.
        size: bytes of the whole folder, everything in it included, that may not be exceeded.
        rule: a name in `scores.SCORERS`, or in `scores.COSTS` for an allocator that weighs costs.
        allocator: a name in `allocate.ALLOCATORS`; None for `global` where the rule can say what widths cost, else for
            the levels of Chowdhury et al. at this budget.
        levels: the widths that the allocator may use; None for its own.
        per_matrix: widths of their own for gate_up and down.
        plan: a plan file to use instead of rule and allocator.
        quantizer: a name in `quantize.QUANTIZERS`.
        group_size: 32, 64 or 128 columns share a scale.
        symmetric: grids without stored zero points.
        other_bits: width of the other linear layers (attention, shared experts, dense MLPs); 16 leaves them.
        head_bits: width of the output head; 16 leaves it. None for 8, or for 16 where `other_bits` is 16. A head that
            shares its weight with the embedding always stays.
        initial: checkpoint or file with the routers before training.
        seed: of random rules.
        zeta: of the reordering by MaxVar.
        single_sweep: reorder in one sweep, as the paper's released code does.
        shard_bytes: largest size of a file of tensors.
        calibration: text files for rules and quantizers that want data; none for the bundled text.
        sequences, sequence_length: how much of it.
        stats: file of calibration statistics: used when it exists, written when it does not.
        all_experts: every token counts for the second moments of every expert.
        affinity: weight tokens in an expert's second moments by their routing weight.
        act_order: GPTQ rounds the columns with the largest inputs first.
        repair_routers: fit routers to the full-precision ones as the layers before them are rounded.
    """

    bits: float | None = None
    bpw: float | None = None
    size: int | None = None
    rule: str = "alpha_tail"
    allocator: str | None = None
    levels: tuple[int, ...] | None = None
    per_matrix: bool = False
    plan: Path | None = None
    quantizer: str = "rtn"
    group_size: int = 64
    symmetric: bool = True
    other_bits: int = 4
    head_bits: int | None = None
    initial: Path | None = None
    seed: int = 0
    zeta: float = 3.0
    single_sweep: bool = False
    shard_bytes: int = 5_000_000_000
    calibration: tuple[Path, ...] = ()
    sequences: int = 128
    sequence_length: int = 2048
    stats: Path | None = None
    all_experts: bool = False
    affinity: bool = False
    act_order: bool = False
    repair_routers: bool = False

    def __post_init__(self) -> None:
        if self.other_bits not in WIDTHS:
            raise UsageError(f"--other-bits {self.other_bits}: give one of {', '.join(map(str, WIDTHS))}")
        if self.head_bits is not None and self.head_bits not in WIDTHS:
            raise UsageError(f"--head-bits {self.head_bits}: give one of {', '.join(map(str, WIDTHS))}")
        if self.group_size not in GROUP_SIZES:
            raise UsageError(f"--group-size {self.group_size}: give one of {', '.join(map(str, GROUP_SIZES))}")
        if self.levels is not None and not _are_levels(self.levels):
            raise UsageError(f"--levels {self.levels}: give ascending widths out of {', '.join(map(str, WIDTHS))}")
        if [self.bits, self.bpw, self.size, self.plan].count(None) != 3:
            raise UsageError("give a budget with --bits, --bpw or --size, or a plan with --plan (one of the four)")
        if self.bpw is not None and not (math.isfinite(self.bpw) and self.bpw > 0):
            raise UsageError(f"--bpw {self.bpw}: give a number of stored bits per weight, such as 2.5")
        if self.size is not None and self.size <= 0:
            raise UsageError(f"--size {self.size}: give a number of bytes, such as 16GB")

    @property
    def head_width(self) -> int:
        """The width of the output head."""
        if self.head_bits is not None:
            return self.head_bits
        return STORED_WIDTH if self.other_bits == STORED_WIDTH else _USUAL_HEAD

    @property
    def budget(self) -> Budget:
        """The budget asked for in code bits; some usual one where another was asked for, or none.

        Raises:
            BudgetInfeasible: no plan at all could meet it.
        """
        return Budget(self.bits if self.bits is not None else _USUAL_BITS)

    @property
    def text(self) -> CalibrationText:
        """The calibration text.

        Raises:
            UsageError: no sequences, or too short ones.
        """
        return CalibrationText(self.calibration, self.sequences, self.sequence_length, self.seed)

    def make_quantizer(self) -> Quantizer:
        """The quantizer of that name.

        Raises:
            UnknownName: with the nearest.
        """
        made = look_up(self.quantizer, QUANTIZERS, kind="quantizer", group="quantizers")
        knobs: dict[str, Any] = {"act_order": True} if self.act_order else {}
        try:
            return made(group_size=self.group_size, symmetric=self.symmetric, **knobs)
        except TypeError:
            raise UsageError(f"--act-order means nothing to the quantizer {self.quantizer}; it is for gptq") from None

    def make_allocator(self, **knobs: Any) -> Allocator:
        """The allocator of that name with those levels.

        Args:
            knobs: other fields of that allocator, such as `form="paper"` for `pmq`.

        Raises:
            UnknownName: with the nearest.
            UsageError: levels or a knob that it cannot use.
            BudgetInfeasible: a budget that no plan at all could meet.
        """
        budget = self.budget  # one that no plan could meet is told before any weight is read
        if self.allocator is None and self.levels is None and not knobs and not self._has_costs:
            return self._by_matrix(default_allocator(budget))
        by_count = {2: "two_level", 3: "three_level"}
        name = (
            self.allocator
            or ("global" if self._has_costs else None)
            or by_count.get(len(self.levels or ()), "three_level")
        )
        made = look_up(name, ALLOCATORS, kind="allocator", group="allocators")
        known = {field.name for field in dataclasses.fields(made)} if dataclasses.is_dataclass(made) else set(knobs)
        if not set(knobs) <= known:
            raise UsageError(f"{min(set(knobs) - known)} means nothing to the allocator {name}")
        if self.levels and dataclasses.is_dataclass(made) and "levels" not in known:
            raise UsageError(f"--levels means nothing to the allocator {name}: it does not choose among widths")
        try:
            return self._by_matrix(made(levels=self.levels, **knobs) if self.levels else made(**knobs))
        except (ValueError, TypeError) as error:
            raise UsageError(f"--levels {self.levels}: {error}" if self.levels else f"{name}: {error}") from None

    def _by_matrix(self, allocator: Allocator) -> Allocator:
        return PerMatrix(allocator) if self.per_matrix else allocator

    @property
    def wants_costs(self) -> bool:
        """Whether the rule is to say what every width costs, and not to score.

        Raises:
            UnknownName, UsageError: as `make_allocator`.
        """
        if self.allocator is None:
            return self._has_costs
        return needs_costs(self.make_allocator())

    @property
    def wants_stats(self) -> bool:
        """Whether the rule asks for calibration statistics.

        Raises:
            UnknownName, UsageError: as `make_allocator` and `make_rule`.
        """
        return self.plan is None and needs_scores(self.make_allocator()) and needs_stats(self.make_rule())

    @property
    def wants_calibration(self) -> bool:
        """Whether rule, quantizer or repair ask for data.

        Raises:
            UnknownName, UsageError: as `wants_stats` and `make_quantizer`.
        """
        return self.wants_stats or needs_moment(self.make_quantizer()) or self.repair_routers

    @property
    def _has_costs(self) -> bool:
        return self.rule in COSTS

    def make_rule(self) -> Scorer | CostRule:
        """The rule of that name, its knobs set where it has them: a rule of costs where the allocator weighs costs.

        Raises:
            UnknownName: with the nearest.
            UsageError: a knob out of range; scores where costs are needed, or the other way round.
        """
        costs = self.wants_costs
        known: dict[str, Any] = {**(COSTS if costs else SCORERS)}
        others = SCORERS if costs else COSTS
        if self.rule in others and self.rule not in known:
            if needs_scores(self.make_allocator()):
                raise UsageError(_wrong_kind(self.rule, self.allocator, costs=costs))
            known = {**others}
        kind, group = ("rule of costs", "costs") if costs else ("scoring rule", "scores")
        rule: Any = look_up(self.rule, known, kind=kind, group=group)()
        knobs = {name: getattr(self, name) for name in ("seed", "zeta", "single_sweep", "per_matrix")}
        if self.levels is not None:
            knobs["bits"] = self.levels
        try:
            made: Scorer | CostRule = _with_knobs(rule, knobs)
        except ValueError as error:
            raise UsageError(f"--rule {self.rule}: {error}") from None
        return made

    def make_meter(self, *rules: object) -> ErrorMeter | None:
        """What calibration has to measure for rules: errors of rounding without data, at the widths of `levels`."""
        wanted = {name for rule in rules for name in needs_errors(rule)}
        if not wanted:
            return None
        quantizer = self.make_quantizer()
        if needs_moment(quantizer):
            quantizer = RTN(group_size=self.group_size, symmetric=self.symmetric)
        return ErrorMeter(
            wanted=frozenset(name.removesuffix("_entries") for name in wanted),
            bits=tuple(width for width in self.levels or MEASURED_WIDTHS if width in PACKED_WIDTHS),
            quantizer=quantizer,
            entries=any(name.endswith("_entries") for name in wanted),
        )

    def recorded(self) -> dict[str, Any]:
        """The options as they are written into the manifest: names and numbers, no paths of this machine."""
        values = dataclasses.asdict(self)
        values["head_bits"] = self.head_width
        values["plan"] = None if self.plan is None else self.plan.name
        values["initial"] = None if self.initial is None else self.initial.name
        values["levels"] = None if self.levels is None else list(self.levels)
        values["calibration"] = [path.name for path in self.calibration]
        values["stats"] = None if self.stats is None else self.stats.name
        return values

    def recipe(self) -> dict[str, Any]:
        """The same by the names of the command line's options, those without a value left out."""
        values = self.recorded()
        values["shard_size"] = values.pop("shard_bytes") / 1e9
        if self.size is not None:
            values["size"] = f"{self.size}B"
        return {name: value for name, value in values.items() if value not in (None, [])}


def _are_levels(levels: tuple[int, ...]) -> bool:
    return bool(levels) and list(levels) == sorted(set(levels)) and set(levels) <= set(WIDTHS)


def _with_knobs(rule: Any, knobs: dict[str, Any]) -> Any:
    """The rule with those of the knobs that it has, or that the rules it is made of have."""
    changes = {}
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if field.name in knobs:
            changes[field.name] = knobs[field.name]
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _with_knobs(value, knobs)
    return dataclasses.replace(rule, **changes)


def _wrong_kind(rule: str, allocator: str | None, *, costs: bool) -> str:
    if costs:
        return (
            f"--allocator {allocator} needs costs and not scores, and --rule {rule} makes scores: give a rule of costs "
            f"({', '.join(COSTS)}), or make a plan with `moesaic allocate COSTS.json` and give it with --plan"
        )
    fit = ", ".join(name for name, made in ALLOCATORS.items() if needs_costs(made()))
    return f"--rule {rule} makes costs and not scores, and --allocator {allocator} ranks by scores: give one of {fit}"
