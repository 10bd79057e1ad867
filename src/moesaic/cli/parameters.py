"""Options that several commands have, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A local checkpoint folder, or a hub id owner/name.")]
Rule = Annotated[
    str,
    typer.Option(
        help="Scoring rule: router_norm, max_var, router_norm+max_var, random.", rich_help_panel="Which experts"
    ),
]
Initial = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoint or safetensors file with the routers before training: the rule then uses their change.",
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
        help="uniform, two_level or three_level.  [default: the paper's choice for the budget]",
        rich_help_panel="How many bits",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--allocator",
        "--method",
        help="With scores: uniform, two_level, three_level; with costs: pmq, global, uniform.  "
        "[default: the paper's choice for the budget; global for costs]",
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
Levels = Annotated[
    str | None,
    typer.Option(help="Widths that the allocator may use, such as 2,3.", rich_help_panel="How many bits"),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads.  [default: torch's choice]")]
SkipExperts = Annotated[
    bool, typer.Option("--pruning/--no-pruning", help="Let the folder's skipping policy, if any, decide what runs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no notices.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Off by default.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier output, once the new one is complete.")
]


def parse_levels(text: str | None) -> tuple[int, ...] | None:
    """`"1,2,3"` -> `(1, 2, 3)`"""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of widths such as 2,3") from None


def parse_at_least(text: str | None) -> tuple[int, ...] | None:
    """`"3,2"` -> `(3, 2)`, `"none"` -> `()`"""
    return () if text == "none" else parse_levels(text)
