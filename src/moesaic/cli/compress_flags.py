"""The options of `compress`, which other commands have too: the table of them, field by field as `CompressOptions`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.cli import parameters as p

if TYPE_CHECKING:
    from moesaic.options import CompressOptions


@dataclass(frozen=True)
class CompressFlags:
    """One field an option; names and defaults are those of `CompressOptions`, but for `shard_size` in GB.

    `recipe` is a file that they may come from.
    """

    bits: Annotated[
        float | None, typer.Option(help="Average code bits of an expert's weight.", rich_help_panel="How many bits")
    ] = None
    bpw: Annotated[
        float | None,
        typer.Option(
            help="At most so many stored bits a weight of the experts, scales and padding included.",
            rich_help_panel="How many bits",
        ),
    ] = None
    size: Annotated[
        str | None,
        typer.Option(
            help="At most this size of the whole folder, everything included, such as 16GB or 15GiB.",
            rich_help_panel="How many bits",
        ),
    ] = None
    plan: Annotated[
        Path | None, typer.Option(help="Use this plan file instead of a rule.", rich_help_panel="How many bits")
    ] = None
    allocator: p.AllocatorName = None
    levels: p.Levels = None
    per_matrix: p.PerMatrix = False
    other_bits: Annotated[
        int,
        typer.Option(
            help="Width of the other linear layers (attention, shared experts, dense MLPs); 16 leaves them.",
            rich_help_panel="How many bits",
        ),
    ] = 4
    head_bits: Annotated[
        int | None,
        typer.Option(
            help="Width of the output head; 16 leaves it. Default: 8, or 16 with `--other-bits 16`.",
            rich_help_panel="How many bits",
        ),
    ] = None
    rule: p.Rule = "alpha_tail"
    initial: p.Initial = None
    zeta: p.Zeta = 3.0
    single_sweep: p.SingleSweep = False
    seed: p.Seed = 0
    quantizer: Annotated[
        str,
        typer.Option(
            help="rtn (clipped), rtn-minmax, hqq or gptq (uses calibration text).", rich_help_panel="Rounding"
        ),
    ] = "rtn"
    group_size: Annotated[
        int, typer.Option(help="Columns that share a scale: 32, 64, 128.", rich_help_panel="Rounding")
    ] = 64
    symmetric: Annotated[
        bool,
        typer.Option("--symmetric/--asymmetric", help="Grids without or with zero points.", rich_help_panel="Rounding"),
    ] = True
    act_order: p.ActOrder = False
    calibration: p.CalibrationFiles = None
    sequences: p.Sequences = 128
    sequence_length: p.SequenceLength = 2048
    stats: p.Stats = None
    all_experts: p.AllExperts = False
    affinity: p.Affinity = False
    repair_routers: p.RepairRouters = False
    shard_size: Annotated[
        float, typer.Option(min=0.001, help="Largest file of tensors, in GB.", rich_help_panel="This run")
    ] = 5.0
    recipe: p.Recipe = None

    def options(self, **instead: Any) -> CompressOptions:
        """What they ask for.

        Args:
            instead: values that replace those of the command line.

        Raises:
            UsageError: they contradict each other.
        """
        from moesaic.options import CompressOptions

        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["recipe"]  # its values are in the others
        values["size"] = p.parse_size(values["size"])
        values["levels"] = p.parse_levels(values["levels"])
        values["calibration"] = p.parse_files(values["calibration"])
        values["shard_bytes"] = int(values.pop("shard_size") * 1e9)
        return CompressOptions(**{**values, **instead})
