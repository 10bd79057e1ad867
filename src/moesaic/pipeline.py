"""The road in a row: open, score, allocate, quantize, pack. The file to read first.

compress("mixtral-8x7b", "mixtral-2.5bit", CompressOptions(bits=2.5))
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.allocate import Uniform, needs_costs
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
from moesaic.progress import SILENT, Progress
from moesaic.recipe import RECIPE, recipe_text
from moesaic.records import BitPlan, Scores, read_json, write_json

_LOG = logging.getLogger(__name__)


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
    options.make_scorer()  # names are checked before anything is read
    checkpoint = Checkpoint.open(source, trust_remote_code=trust_remote_code)
    _LOG.info("%s: %s, %d tensors", source, checkpoint.config.model_type, len(checkpoint.stored))
    scores, plan = make_plan(checkpoint, options, progress=progress)
    build = PackedBuild(checkpoint, plan, quantizer, other_bits=options.other_bits)
    shards = split_into_shards([specs for _, specs in build.units()], options.shard_bytes)
    job = PackingJob(target, shards, _identity(checkpoint, plan, options), overwrite=overwrite)
    if job.resumed:
        _LOG.info("going on with an unfinished run: %d parts are done", job.resumed)
    try:
        build.run(job, progress)
        job.close_files()
        job.write_index()
        write_json(job.out / "config.json", build.config())
        copy_companions(source, job.out)
        (job.out / RECIPE).write_text(recipe_text(options.recipe()), encoding="utf-8")
        files, content = describe_files(job.out), content_sha256(job.digests)
        write_json(job.out / MANIFEST, manifest(build, files, content, scores, options))
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
    checkpoint: Checkpoint, options: CompressOptions, *, progress: Progress = SILENT
) -> tuple[Scores | None, BitPlan]:
    """Score and allocate, or read the plan that the options name.

    Returns:
        The scores, None where no rule was needed, and the plan, checked against the model.

    Raises:
        InvalidPlan, BudgetInfeasible, UnknownName: as the stages say.
        UsageError: an allocator that needs costs.
    """
    shapes = [layer.shape for layer in checkpoint.layers]
    if options.plan is not None:
        scores, plan = None, BitPlan.from_json(read_json(options.plan))
    else:
        allocator = options.make_allocator()  # before the rule reads weights: names are checked first
        if needs_costs(allocator):
            raise UsageError(
                f"--allocator {options.allocator} needs costs and not scores: make a plan with "
                "`moesaic allocate COSTS.json` and give it with --plan"
            )
        scores = None if isinstance(allocator, Uniform) else score(checkpoint, options, progress=progress)
        plan = allocator(shapes, options.budget, scores)
    plan.check(shapes)
    _LOG.info("plan: %s, %.4g code bits", plan.method, plan.reached_bits(shapes))
    return scores, plan


def score(checkpoint: Checkpoint, options: CompressOptions, *, progress: Progress = SILENT) -> Scores:
    """Score every expert by the rule that the options name; `progress` counts the experts that it reads."""
    initial = None
    if options.initial is not None:
        if not options.initial.exists():
            raise NotACheckpoint(f"--initial {options.initial}: no such file or folder")
        initial = InitialRouters.open(options.initial)
    progress.start("score", sum(layer.experts for layer in checkpoint.layers))
    return options.make_scorer()(CheckpointWeights(checkpoint, initial, progress=progress))


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


def manifest(
    build: PackedBuild,
    files: Mapping[str, Mapping[str, Any]],
    content: str,
    scores: Scores | None,
    options: CompressOptions,
) -> dict[str, Any]:
    """`moesaic.json`; no times and no paths, so that the same command gives the same bytes.

    Args:
        build: the packed model.
        files: every other file of its folder with size and SHA-256.
        content: one SHA-256 over all that was read.
        scores: the scores that its plan came from, None where it came from none.
        options: of the run.
    """
    checkpoint = build.checkpoint
    shapes = [layer.shape for layer in checkpoint.layers]
    weights = sum(shape.experts * shape.expert_weights for shape in shapes)
    return {
        "format_version": FORMAT_VERSION,
        "versions": library_versions(),
        "source": {
            "name": checkpoint.name,
            "model_type": checkpoint.config.model_type,
            "content_sha256": content,
        },
        "options": options.recorded(),
        "code_bits": build.plan.reached_bits(shapes),
        "stored_bpw": 8 * build.expert_bytes() / weights,
        "expert_bytes": build.expert_bytes(),
        "expert_weights": weights,
        "total_bytes": sum(file["bytes"] for file in files.values()),
        "plan": build.plan.to_json(shapes),
        "scores": None if scores is None else scores.to_json(),
        "files": dict(files),
    }
