"""`moesaic report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesaic.cli.bundles import Output, takes


@takes(output=Output)
def command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="OUT...", help="Folders written by `moesaic compress`, one or several.")
    ],
    output: Output,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    records: Annotated[
        list[Path] | None,
        typer.Option(
            help="A further file: run records, calibration statistics, costs or scores. May be given several times."
        ),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Write every figure into this folder too, as SVG.")] = None,
) -> None:
    """Make one HTML page of what is known about packed folders; it opens offline and needs nothing else.

    It is made from the manifest and the record files in the folders (`moesaic evaluate … --save OUT/records.json`) and
    from the files given with `--records`. No model is opened. What was not measured is named, with the command for it.
    """
    from moesaic.report.figure import write_figures
    from moesaic.report.numbers import size_text
    from moesaic.report.page import build
    from moesaic.report.sources import read

    if not out.parent.is_dir():
        from moesaic.errors import UsageError

        raise UsageError(f"--out {out}: no folder {out.parent}; make it first")
    output.begin()
    material = read(folders, records or ())
    made = build(material)
    out.write_text(made.html, encoding="utf-8")
    written = write_figures(list(made.figures), figures) if figures is not None else []
    size = out.stat().st_size
    found = {
        "out": str(out),
        "bytes": size,
        "runs": [run.label for run in material.runs],
        "figures": written,
        "missing": [{"title": each.title, "command": each.command} for each in made.missing],
        "left_out": list(made.left_out),
    }

    def show() -> None:
        print(f"{out}: {len(material.runs)} runs, {len(made.figures)} figures, {size_text(size)}")
        for each in made.missing:
            print(f"  not measured: {each.title}; try: {each.command}")

    output.print(found, None if output.quiet else show)
