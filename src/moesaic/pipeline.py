"""The road in a row: open, score, allocate, quantize, pack. The file to read first.

compress("mixtral-8x7b", "mixtral-2.5bit", CompressOptions(bits=2.5))
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from moesaic.allocate import needs_scores
from moesaic.budgets import ByteBudget, stored_bpw
from moesaic.checkpoint.companions import copy_companions
from moesaic.checkpoint.locate import locate
from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.weights import CheckpointWeights, InitialRouters
from moesaic.checkpoint.writer import split_into_shards, storage_error
from moesaic.errors import CorruptFile, NotACheckpoint, UsageError
from moesaic.options import CompressOptions
from moesaic.packing.build import PackedBuild
from moesaic.packing.job import MANIFEST, PackingJob, check_target
from moesaic.packing.layout import FORMAT_VERSION
from moesaic.packing.manifest import content_sha256, describe_files, library_versions
from moesaic.packing.sizes import folder_bytes, with_own_size
from moesaic.progress import SILENT, Progress
from moesaic.records import BitPlan, CostTable, ExpertStats, Scores, read_json, write_json


def compress(
    model: str | Path,
    out: str | Path,
    options: CompressOptions,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Compress a Mixture-of-Experts checkpoint into a packed folder.

    Holds one expert, or one other tensor, at a time.

    Args:
        model: a local checkpoint folder or a hub id.
        out: the folder to make; it appears when it is complete. A run that was killed goes on when it is repeated.
        options: what to do.
        overwrite: replace a packed folder that exists, when the new one is complete.
        trust_remote_code: run Python code of the checkpoint, as transformers does with the flag of that name.
        progress: told how many weights are done.

    Returns:
        The folder.

    Raises:
        MoesaicError: see `moesaic.errors`; nothing is left under the name of `out`.
    """
    target = Path(out)
    check_target(target, overwrite=overwrite)
    source = locate(model)
    if target.resolve() == source.resolve():
        raise UsageError(f"{target} is the checkpoint itself; give another folder for the output")
    quantizer = options.make_quantizer()
    options.make_rule()  # names are checked before anything is read
    checkpoint = Checkpoint.open(source, trust_remote_code=trust_remote_code)
    scores, plan = make_plan(checkpoint, options)
    build = PackedBuild(checkpoint, plan, quantizer, other_bits=options.other_bits)
    shards = split_into_shards([specs for _, specs in build.units()], options.shard_bytes)
    job = PackingJob(target, shards, _identity(checkpoint, plan, options), overwrite=overwrite)
    try:
        build.run(job, progress)
        job.close_files()
        job.write_index()
        write_json(job.out / "config.json", build.config())
        copy_companions(source, job.out)
        files = describe_files(job.out)
        write_json(job.out / MANIFEST, _manifest(build, scores, options, files, content_sha256(job.digests)))
        job.publish()
    except OSError as error:
        job.abandon()
        raise storage_error(error, job.work) from error
    except CorruptFile:
        job.abandon(keep=False)  # the source has to change, and then this work is of no use
        raise
    except BaseException:
        job.abandon()
        raise
    return target


def make_plan(
    checkpoint: Checkpoint, options: CompressOptions, stats: ExpertStats | None = None
) -> tuple[Scores | CostTable | None, BitPlan]:
    """Score and allocate, or read the plan that the options name.

    Args:
        checkpoint: the model.
        options: what to do.
        stats: what a calibration run learned of it; some rules need it.

    Returns:
        The scores or costs, None where no rule was needed, and the plan, checked against the model.

    Raises:
        InvalidPlan, BudgetInfeasible, UnknownName: as the stages say.
        UsageError: a rule that does not fit the allocator, or needs statistics.
    """
    shapes = [layer.shape for layer in checkpoint.layers]
    if options.plan is not None:
        scores, plan = None, BitPlan.from_json(read_json(options.plan))
    else:
        allocator = options.make_allocator()  # before the rule reads weights: names are checked first
        scores = score(checkpoint, options, stats) if needs_scores(allocator) else None
        if options.bits is not None:
            plan = allocator(shapes, options.budget, scores)
        else:
            plan = ByteBudget(checkpoint, options, lambda build: _folder_bytes(build, scores, options)).plan(scores)
    plan.check(shapes)
    return scores, plan


def score(checkpoint: Checkpoint, options: CompressOptions, stats: ExpertStats | None = None) -> Scores | CostTable:
    """Score every expert by the rule that the options name, or work out its costs.

    Raises:
        UsageError: the rule needs statistics.
    """
    rule = options.make_rule()
    initial = None
    if options.initial is not None:
        if not options.initial.exists():
            raise NotACheckpoint(f"--initial {options.initial}: no such file or folder")
        initial = InitialRouters.open(options.initial)
    return rule(CheckpointWeights(checkpoint, initial, stats))


def _identity(checkpoint: Checkpoint, plan: BitPlan, options: CompressOptions) -> dict[str, Any]:
    """What makes the result what it is: a run that differs in any of it may not go on with this one's work."""
    files = sorted({stored.path for stored in checkpoint.stored.values()})
    config = hashlib.sha256((checkpoint.folder / "config.json").read_bytes()).hexdigest()
    return {
        "source": {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files},
        "config": config,
        "options": options.recorded(),
        "plan": plan.to_json(),
        "versions": library_versions(),
    }


def _folder_bytes(build: PackedBuild, scores: Scores | CostTable | None, options: CompressOptions) -> int:
    """How large the folder is going to be."""
    return folder_bytes(
        build, options.shard_bytes, lambda files, content: _manifest(build, scores, options, files, content)
    )


def _manifest(
    build: PackedBuild,
    scores: Scores | CostTable | None,
    options: CompressOptions,
    files: dict[str, dict[str, Any]],
    content: str,
) -> dict[str, Any]:
    """`moesaic.json`; no times and no paths, so that the same command gives the same bytes.

    Args:
        build: of the model.
        scores: or costs; None where there were none.
        options: of the command.
        files: all other files.
        content: hash of what was read of the source.
    """
    checkpoint = build.checkpoint
    shapes = [layer.shape for layer in checkpoint.layers]
    code_bits, bpw = build.plan.reached_bits(shapes), stored_bpw(build)
    manifest = {
        "format_version": FORMAT_VERSION,
        "versions": library_versions(),
        "source": {
            "name": checkpoint.name,
            "model_type": checkpoint.config.model_type,
            "content_sha256": content,
        },
        "options": options.recorded(),
        "code_bits": code_bits,
        "stored_bpw": bpw,
        "expert_bytes": build.expert_bytes(),
        "expert_weights": sum(shape.experts * shape.expert_weights for shape in shapes),
        "total_bytes": sum(file["bytes"] for file in files.values()),
        "plan": {**build.plan.to_json(shapes), "reached": {"bits": code_bits, "bpw": bpw}},
        "scores": None if scores is None else scores.to_json(),
        "files": files,
    }
    return with_own_size(manifest)
