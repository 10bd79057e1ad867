"""`moesaic calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes


@takes(output=Output)
def command(
    model: p.Model,
    output: Output,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of statistics to write (safetensors).")],
    rules: Annotated[
        str,
        typer.Option(
            help="The rules of costs whose errors to measure, or none: all in one pass over the text.",
            rich_help_panel="Calibration",
        ),
    ] = "quant_error,hessian_trace,fisher_error",
    levels: p.Levels = None,
    per_matrix: Annotated[
        bool,
        typer.Option(
            "--per-matrix",
            help="Also with only gate and up, or only down, rounded.",
            rich_help_panel="Calibration",
        ),
    ] = False,
    group_size: Annotated[
        int, typer.Option(help="Columns that share a scale: 32, 64, 128.", rich_help_panel="Rounding")
    ] = 64,
    symmetric: Annotated[
        bool,
        typer.Option("--symmetric/--asymmetric", help="Grids without or with zero points.", rich_help_panel="Rounding"),
    ] = True,
    calibration: p.CalibrationFiles = None,
    sequences: p.Sequences = 128,
    sequence_length: p.SequenceLength = 2048,
    seed: p.Seed = 0,
    all_experts: p.AllExperts = False,
    overwrite: p.Overwrite = False,
    threads: p.Threads = None,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Measure what every expert does on text, once for all rules and budgets.

    Give the file to `compress`, `score` or `plan` with --stats. A run that was stopped goes on when the same command is
    given again.
    """
    from moesaic.cli.console import note, set_threads
    from moesaic.options import CompressOptions
    from moesaic.pipeline import calibrate

    options = CompressOptions(
        bits=2.5,  # any: nothing is allocated
        levels=p.parse_levels(levels),
        group_size=group_size,
        symmetric=symmetric,
        calibration=p.parse_files(calibration),
        sequences=sequences,
        sequence_length=sequence_length,
        seed=seed,
        all_experts=all_experts,
    )
    names = [] if rules == "none" else rules.split(",")
    output.begin()
    set_threads(threads)
    try:
        with output.bar() as bar:
            stats = calibrate(
                model,
                out,
                options,
                rules=names,
                per_matrix=per_matrix,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
                progress=bar,
            )
    except KeyboardInterrupt:
        note(f"interrupted; finished layers are in {out}.partial, and the same command goes on from there")
        raise typer.Exit(130) from None
    rare = {name: layer.rare() for name, layer in stats.layers.items() if layer.rare()}
    fingerprint = stats.fingerprint
    summary = {"out": str(out), **fingerprint, "bits": list(stats.bits), "rare_experts": rare}
    output.print(summary, None if output.quiet else lambda: _print(summary))


def _print(summary: dict[str, Any]) -> None:
    from moesaic.stats import RARE_TOKENS

    print(f"{summary['out']}: {summary['sequences']} sequences of {summary['sequence_length']} tokens")
    for layer, experts in summary["rare_experts"].items():
        print(f"  rare experts  {layer}: {', '.join(map(str, experts))} (fewer than {RARE_TOKENS} tokens)")
