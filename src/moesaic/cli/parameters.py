"""Options that several commands have, spelled once."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A local checkpoint folder, or a hub id owner/name.")]
Rule = Annotated[
    str,
    typer.Option(
        help="Scores from weights: router_norm, max_var, kurtosis, alpha_tail, random; from text: "
        "activation_frequency, rarity, routing_weight, significance. Costs (for pmq and global): alpha_tail; "
        "from text: quant_error, fisher_error, hessian_trace. Each also with +max_var, as in router_norm+max_var.",
        rich_help_panel="Which experts",
    ),
]
Initial = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoint or safetensors file with the routers before training: rules of router norms then use the "
        "change, and the report shows it; other rules do not read it.",
        rich_help_panel="Which experts",
    ),
]
Zeta = Annotated[
    float,
    typer.Option(help="MaxVar lifts an expert when it is this many times larger.", rich_help_panel="Which experts"),
]
SingleSweep = Annotated[
    bool,
    typer.Option(
        "--single-sweep",
        help="Reorder in one sweep, as the paper's released code does.",
        rich_help_panel="Which experts",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of random rules.", rich_help_panel="Which experts")]
AllocatorName = Annotated[
    str | None,
    typer.Option(
        help="With scores: uniform, two_level, three_level; with costs: pmq, global, uniform.  "
        "[default: global for costs; for scores the levels of Chowdhury et al.]",
        rich_help_panel="How many bits",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--allocator",
        "--method",
        help="With scores: uniform, two_level, three_level; with costs: pmq, global, uniform.  "
        "[default: global for costs; for scores the levels of Chowdhury et al.]",
        rich_help_panel="How many bits",
    ),
]
AtLeast = Annotated[
    str | None,
    typer.Option(
        help="Every layer keeps an expert of each of these widths, such as 3,2; or none.  "
        "[default: 3,2 for pmq where the costs have them, none for global]",
        rich_help_panel="How many bits",
    ),
]
Form = Annotated[
    str | None,
    typer.Option(
        help="Exponents of pmq: released (1, 1.5, 1) or paper (1, 1, 2).  [default: released]",
        rich_help_panel="How many bits",
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        help="Solver of global: milp (exact), lagrangian (fast, says its gap) or auto.  [default: auto]",
        rich_help_panel="How many bits",
    ),
]
PerMatrix = Annotated[
    bool,
    typer.Option(
        "--per-matrix",
        help="Widths of their own for gate/up and for down, with --allocator global or uniform.",
        rich_help_panel="How many bits",
    ),
]
Levels = Annotated[
    str | None,
    typer.Option(help="Widths that the allocator may use, such as 2,3.", rich_help_panel="How many bits"),
]
CalibrationFiles = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE[,FILE...]",
        help="Text for rules and quantizers that use data: plain, or JSON lines with a text field. Several files are "
        "drawn from evenly.  [default: the bundled text]",
        rich_help_panel="Calibration",
    ),
]
Sequences = Annotated[
    int, typer.Option(min=1, help="Sequences of calibration text at most.", rich_help_panel="Calibration")
]
SequenceLength = Annotated[
    int,
    typer.Option(min=2, help="Tokens of each; at most what the model is made for.", rich_help_panel="Calibration"),
]
Stats = Annotated[
    Path | None,
    typer.Option(
        help="File of calibration statistics: used when it exists, written when it does not.",
        rich_help_panel="Calibration",
    ),
]
AllExperts = Annotated[
    bool,
    typer.Option(
        "--all-experts",
        help="Every token counts for the second moments of every expert.",
        rich_help_panel="Calibration",
    ),
]
Affinity = Annotated[
    bool,
    typer.Option(
        "--affinity",
        help="Weight tokens in an expert's second moments by their routing weight.",
        rich_help_panel="Calibration",
    ),
]
ActOrder = Annotated[
    bool,
    typer.Option(
        "--act-order", help="gptq rounds the columns with the largest inputs first.", rich_help_panel="Rounding"
    ),
]
RepairRouters = Annotated[
    bool,
    typer.Option(
        "--repair-routers",
        help="Fit routers to the full-precision ones as the layers before them are rounded.",
        rich_help_panel="Calibration",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads.  [default: torch's choice]", rich_help_panel="This run")
]
SkipExperts = Annotated[
    bool,
    typer.Option(
        "--pruning/--no-pruning",
        help="Let the folder's skipping policy, if any, decide what runs.",
        rich_help_panel="This run",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model. Off by default.",
        rich_help_panel="This run",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace an earlier output, once the new one is complete.", rich_help_panel="This run"
    ),
]


def _use_recipe(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take the options that the command line does not give from a recipe."""
    if path is None or ctx.resilient_parsing:
        return path
    from moesaic.recipe import read_recipe

    known = {param.name: param for param in ctx.command.params if param.param_type_name == "option"}
    left = {"recipe", "out", "help", "json_", "quiet", "verbose", "overwrite", "dry_run"}
    found = read_recipe(path, [str(name) for name in known if name not in left])
    for name, value in found.items():
        if isinstance(value, list):
            found[name] = ",".join(map(str, value))
        elif name in _FILES and (path.parent / str(value)).exists():
            found[name] = str(path.parent / str(value))
    ctx.default_map = {**(ctx.default_map or {}), **found}
    return path


_FILES = ("plan", "initial", "stats")  # in a recipe, their paths are seen from its folder
Recipe = Annotated[
    Path | None,
    typer.Option(
        help="Take options from this YAML file (`bits: 2.5`); those given here win.",
        rich_help_panel="This run",
        is_eager=True,  # before the others look for their values
        callback=_use_recipe,
    ),
]


def parse_levels(text: str | None) -> tuple[int, ...] | None:
    """`"1,2,3"` -> `(1, 2, 3)`"""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of widths such as 2,3") from None


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_size(text: str | None) -> int | None:
    """`"16GB"` -> 16 000 000 000, `"1.5GiB"` -> 1 610 612 736, rounded down to whole bytes."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]+)\s*", text)
    if found is None or found[2].lower() not in _UNITS:
        raise typer.BadParameter(
            f"{text!r} is not a size: give a number with a unit, such as 16GB (billions of bytes) or 16GiB (2^30 bytes)"
        )
    return int(Decimal(found[1]) * _UNITS[found[2].lower()])


def parse_at_least(text: str | None) -> tuple[int, ...] | None:
    """`"3,2"` -> `(3, 2)`, `"none"` -> `()`"""
    return () if text == "none" else parse_levels(text)


def parse_files(text: str | None) -> tuple[Path, ...]:
    """`"a.txt,b.jsonl"` -> two paths; none for None."""
    return () if text is None else tuple(Path(part) for part in text.split(","))
