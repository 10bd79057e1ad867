"""`moesaic score`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes


@takes(output=Output)
def command(
    model: p.Model,
    output: Output,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Scores file to write.  [default: print]")] = None,
    rule: p.Rule = "router_norm+max_var",
    initial: p.Initial = None,
    zeta: p.Zeta = 3.0,
    single_sweep: p.SingleSweep = False,
    seed: p.Seed = 0,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Score every expert of a checkpoint: larger = deserves more bits."""
    from moesaic.checkpoint.locate import locate
    from moesaic.checkpoint.reader import Checkpoint
    from moesaic.cli.console import size_text
    from moesaic.options import CompressOptions
    from moesaic.pipeline import score
    from moesaic.records import write_json

    options = CompressOptions(bits=16, rule=rule, initial=initial, zeta=zeta, single_sweep=single_sweep, seed=seed)
    options.make_scorer()
    output.begin()
    checkpoint = Checkpoint.open(locate(model), trust_remote_code=trust_remote_code)
    start = time.perf_counter()
    with output.bar() as bar:
        scores = score(checkpoint, options, progress=bar)
    seconds = time.perf_counter() - start
    if out is not None:
        write_json(out, scores.to_json())
    output.print(scores.to_json(), None if out else lambda: print(json.dumps(scores.to_json())))
    output.note(f"{rule}: {seconds:.3f} s, {size_text(checkpoint.bytes_read)} of tensors read")
