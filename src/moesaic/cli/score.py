"""`moesaic score`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes


@takes(output=Output)
def command(
    model: p.Model,
    output: Output,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Scores file to write.  [default: print]")] = None,
    rule: p.Rule = "alpha_tail",
    initial: p.Initial = None,
    zeta: p.Zeta = 3.0,
    single_sweep: p.SingleSweep = False,
    seed: p.Seed = 0,
    allocator: p.AllocatorName = None,
    levels: p.Levels = None,
    calibration: p.CalibrationFiles = None,
    sequences: p.Sequences = 128,
    sequence_length: p.SequenceLength = 2048,
    stats: p.Stats = None,
    all_experts: p.AllExperts = False,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Score every expert of a checkpoint (larger = deserves more bits), or work out what every width costs.

    A rule of costs, or --allocator pmq or global, gives costs, which `moesaic allocate` turns into a plan.
    """
    from moesaic.calibrated import measure, open_calibration
    from moesaic.checkpoint.locate import locate
    from moesaic.checkpoint.reader import Checkpoint
    from moesaic.cli.console import size_text
    from moesaic.options import CompressOptions
    from moesaic.pipeline import score
    from moesaic.records import write_json

    options = CompressOptions(
        bits=2.5,  # any budget that needs a rule
        rule=rule,
        initial=initial,
        zeta=zeta,
        single_sweep=single_sweep,
        seed=seed,
        allocator=allocator,
        levels=p.parse_levels(levels),
        calibration=p.parse_files(calibration),
        sequences=sequences,
        sequence_length=sequence_length,
        stats=stats,
        all_experts=all_experts,
    )
    options.make_rule()
    output.begin()
    checkpoint = Checkpoint.open(locate(model), trust_remote_code=trust_remote_code)
    start = time.perf_counter()
    with TemporaryDirectory(prefix="moesaic-") as scratch, output.bar() as bar:
        opened = open_calibration(checkpoint, options, Path(scratch), trust_remote_code=trust_remote_code)
        scores = score(checkpoint, options, measure(opened, options, progress=bar), progress=bar)
    seconds = time.perf_counter() - start
    if out is not None:
        write_json(out, scores.to_json())
    output.print(scores.to_json(), None if out else lambda: print(json.dumps(scores.to_json())))
    output.note(f"{rule}: {seconds:.3f} s, {size_text(checkpoint.bytes_read)} of tensors read")
