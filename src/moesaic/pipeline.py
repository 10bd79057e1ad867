"""The road in a row: open, score, allocate, quantize, pack. The file to read first.

compress("mixtral-8x7b", "mixtral-2.5bit", CompressOptions(bits=2.5))
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from moesaic.allocate import needs_scores
from moesaic.budgets import ByteBudget
from moesaic.calibrate.files import save_stats
from moesaic.calibrate.run import Calibration
from moesaic.calibrated import guide_for, leaving_no_empty_work, measure, open_calibration, record_of
from moesaic.checkpoint.companions import copy_companions
from moesaic.checkpoint.locate import locate
from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.weights import CheckpointWeights, InitialRouters
from moesaic.checkpoint.writer import split_into_shards, storage_error
from moesaic.contents import STATS_FILE, folder_files, manifest
from moesaic.errors import CorruptFile, NotACheckpoint, OutputExists, UsageError
from moesaic.options import CompressOptions
from moesaic.packing.build import PackedBuild
from moesaic.packing.job import MANIFEST, PackingJob, check_target
from moesaic.packing.manifest import content_sha256, describe_files, library_versions
from moesaic.progress import SILENT, Progress
from moesaic.recipe import RECIPE, recipe_text
from moesaic.records import BitPlan, CostTable, ExpertStats, Scores, read_json, write_json
from moesaic.registry import look_up
from moesaic.scores import COSTS
from moesaic.scores.observed import Noted, observe

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
    options.make_rule()  # names are checked before anything is read
    checkpoint = Checkpoint.open(source, trust_remote_code=trust_remote_code)
    _LOG.info("%s: %s, %d tensors", source, checkpoint.config.model_type, len(checkpoint.stored))
    work = target.with_name(target.name + ".partial")
    calibration = open_calibration(checkpoint, options, work, trust_remote_code=trust_remote_code)
    stats = measure(calibration, options, work, overwrite=overwrite, progress=progress)
    scores, plan = make_plan(checkpoint, options, stats, progress=progress)
    noted = note_experts(checkpoint, options, scores, progress=progress)
    build = PackedBuild(checkpoint, plan, quantizer, other_bits=options.other_bits, head_bits=options.head_width)
    job = _open_job(target, build, options, calibration, overwrite=overwrite)
    with _given_up_in_order(job):
        guide = guide_for(calibration, options, job.work / "states")
        build.run(job, progress, guide)
        job.close_files()
        _write_beside(job, build, options, stats)
        files, content = describe_files(job.out), content_sha256(job.digests)
        found = record_of(calibration, stats, guide)
        said = manifest(build, files, content, scores, options, calibration=found, observed=noted)
        write_json(job.out / MANIFEST, said)
        job.publish()
    return target


def _open_job(
    target: Path,
    build: PackedBuild,
    options: CompressOptions,
    calibration: Calibration | None,
    *,
    overwrite: bool,
) -> PackingJob:
    shards = split_into_shards([specs for _, specs in build.units()], options.shard_bytes)
    identity = _identity(build.checkpoint, build.plan, options)
    if calibration is not None:
        identity["calibration"] = calibration.fingerprint
    job = PackingJob(target, shards, identity, overwrite=overwrite)
    if job.resumed:
        _LOG.info("going on with an unfinished run: %d parts are done", job.resumed)
    return job


@contextmanager
def _given_up_in_order(job: PackingJob) -> Iterator[None]:
    """What an error leaves of a job: what a later run can go on from, and nothing where it could not."""
    try:
        yield
    except OSError as error:
        job.abandon()
        raise storage_error(error, job.work) from error
    except CorruptFile:
        job.abandon(keep=False)  # the source has to change, and then this work is of no use
        raise
    except BaseException:
        job.abandon()
        raise


def _write_beside(job: PackingJob, build: PackedBuild, options: CompressOptions, stats: ExpertStats | None) -> None:
    """Everything of the folder but the tensors and the manifest."""
    job.write_index()
    write_json(job.out / "config.json", build.config())
    copy_companions(build.checkpoint.folder, job.out)
    if stats is not None:
        save_stats(stats, job.out / STATS_FILE)
    (job.out / RECIPE).write_text(recipe_text(options.recipe()), encoding="utf-8")


def calibrate(
    model: str | Path,
    out: str | Path,
    options: CompressOptions,
    *,
    rules: Sequence[str] = (),
    per_matrix: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
) -> ExpertStats:
    """Measure the statistics for some rules of costs in one pass over the text, and write them to a file.

    Args:
        model: a local checkpoint folder or a hub id.
        out: the file. A run that was killed goes on when it is repeated.
        options: text, widths and grids; rule and budget play no part.
        rules: names in `scores.COSTS`; none for what needs no errors.
        per_matrix: also errors with only gate and up, or only down, rounded.
        overwrite: replace a file that exists, discard unfinished work of other settings.
        trust_remote_code: run Python code of the checkpoint.
        progress: counts layers.

    Raises:
        MoesaicError: see `moesaic.errors`.
    """
    target = Path(out)
    if target.exists() and not overwrite:
        raise OutputExists(f"{target} exists; give another file, or --overwrite to replace it")
    made = [look_up(name, COSTS, kind="rule of costs", group="costs")() for name in rules]
    meter = options.make_meter(*made)
    if meter is not None:
        meter = replace(meter, entries=meter.entries or per_matrix)
    checkpoint = Checkpoint.open(locate(model), trust_remote_code=trust_remote_code)
    work = target.with_name(target.name + ".partial")
    found = Calibration(
        checkpoint,
        options.text,
        work / "scratch",
        all_experts=options.all_experts,
        trust_remote_code=trust_remote_code,
    )
    with leaving_no_empty_work(work):
        stats = found.statistics(meter, work / "calibration", overwrite=overwrite, progress=progress)
        save_stats(stats, target)
    shutil.rmtree(work)
    return stats


def make_plan(
    checkpoint: Checkpoint,
    options: CompressOptions,
    stats: ExpertStats | None = None,
    *,
    progress: Progress = SILENT,
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
        scores = score(checkpoint, options, stats, progress=progress) if needs_scores(allocator) else None
        if options.bits is not None:
            plan = allocator(shapes, options.budget, scores)
        else:

            def folder_bytes(build: PackedBuild) -> int:
                return sum(folder_files(build, scores, options, stats).values())

            plan = ByteBudget(checkpoint, options, folder_bytes).plan(scores)
    plan.check(shapes)
    _LOG.info("plan: %s, %.4g code bits", plan.method, plan.reached_bits(shapes))
    return scores, plan


def score(
    checkpoint: Checkpoint,
    options: CompressOptions,
    stats: ExpertStats | None = None,
    *,
    progress: Progress = SILENT,
) -> Scores | CostTable:
    """Score every expert by the rule that the options name, or work out its costs; `progress` counts experts.

    Raises:
        UsageError: the rule needs statistics.
    """
    rule = options.make_rule()
    progress.start("score", sum(layer.experts for layer in checkpoint.layers))
    return rule(_weights(checkpoint, options, stats, progress))


def note_experts(
    checkpoint: Checkpoint, options: CompressOptions, scores: Scores | CostTable | None, *, progress: Progress = SILENT
) -> Noted:
    """Router norms and MaxVar of every expert, for reports; see `scores.observed`."""
    progress.start("note", sum(layer.experts for layer in checkpoint.layers))
    return observe(_weights(checkpoint, options, None, progress), None if scores is None else scores.to_json())


def _weights(
    checkpoint: Checkpoint, options: CompressOptions, stats: ExpertStats | None, progress: Progress
) -> CheckpointWeights:
    initial = None
    if options.initial is not None:
        if not options.initial.exists():
            raise NotACheckpoint(f"--initial {options.initial}: no such file or folder")
        initial = InitialRouters.open(options.initial)
    return CheckpointWeights(checkpoint, initial, stats, progress=progress)


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
