"""`moesaic allocate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from moesaic.cli import parameters as p


def command(
    scores: Annotated[Path, typer.Argument(metavar="SCORES.json", help="Written by `moesaic score`.")],
    model: Annotated[str, typer.Option("--model", help="The checkpoint that the scores are of.")],
    bits: Annotated[float, typer.Option(help="Average code bits of an expert's weight.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Plan file to write.  [default: print]")] = None,
    allocator: p.AllocatorName = None,
    levels: p.Levels = None,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Turn scores and a budget into a bit plan, which can be edited and given to `compress --plan`."""
    from moesaic.checkpoint.locate import locate
    from moesaic.checkpoint.reader import Checkpoint
    from moesaic.cli.console import quiet_libraries
    from moesaic.options import CompressOptions
    from moesaic.records import Scores, read_json, write_json

    options = CompressOptions(bits=bits, allocator=allocator, levels=p.parse_levels(levels))
    made = options.make_allocator()
    quiet_libraries()
    checkpoint = Checkpoint.open(locate(model), trust_remote_code=trust_remote_code)
    shapes = [layer.shape for layer in checkpoint.layers]
    plan = made(shapes, options.budget, Scores.from_json(read_json(scores)))
    if out is not None:
        write_json(out, plan.to_json(shapes))
    else:
        print(json.dumps(plan.to_json(shapes), indent=2))
