"""The road in a row: open, score, allocate, quantize, pack. The file to read first.

compress("mixtral-8x7b", "mixtral-2.5bit", CompressOptions(bits=2.5))
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from moesaic.allocate import needs_scores
from moesaic.budgets import ByteBudget, stored_bpw
from moesaic.calibrate.files import save_stats, stats_bytes
from moesaic.calibrate.guide import CalibratedGuide
from moesaic.calibrate.repair import RouterRepair
from moesaic.calibrate.run import Calibration, reuse
from moesaic.calibrate.store import Store
from moesaic.checkpoint.companions import copy_companions
from moesaic.checkpoint.locate import locate
from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.weights import CheckpointWeights, InitialRouters
from moesaic.checkpoint.writer import split_into_shards, storage_error
from moesaic.errors import CorruptFile, NotACheckpoint, OutputExists, UsageError
from moesaic.options import CompressOptions
from moesaic.packing.build import PackedBuild
from moesaic.packing.job import MANIFEST, PackingJob, check_target
from moesaic.packing.layout import FORMAT_VERSION
from moesaic.packing.manifest import content_sha256, describe_files, library_versions
from moesaic.packing.sizes import predict_files, with_own_size
from moesaic.progress import SILENT, Progress
from moesaic.quantize import Quantizer, needs_moment
from moesaic.recipe import RECIPE, recipe_text
from moesaic.records import BitPlan, CostTable, ExpertStats, Scores, read_json, write_json
from moesaic.registry import look_up
from moesaic.scores import COSTS, needs_stats
from moesaic.scores.observed import Noted, longest_notes, observe

STATS_FILE = "calibration_stats.safetensors"

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
    build = PackedBuild(checkpoint, plan, quantizer, other_bits=options.other_bits)
    shards = split_into_shards([specs for _, specs in build.units()], options.shard_bytes)
    identity = _identity(checkpoint, plan, options)
    if calibration is not None:
        identity["calibration"] = calibration.fingerprint
    job = PackingJob(target, shards, identity, overwrite=overwrite)
    if job.resumed:
        _LOG.info("going on with an unfinished run: %d parts are done", job.resumed)
    try:
        guide = None
        if calibration is not None and (needs_moment(quantizer) or options.repair_routers):
            guide = _guide(calibration, quantizer, options, Store(job.work / "states"))
        build.run(job, progress, guide)
        job.close_files()
        job.write_index()
        write_json(job.out / "config.json", build.config())
        copy_companions(source, job.out)
        if stats is not None:
            save_stats(stats, job.out / STATS_FILE)
        (job.out / RECIPE).write_text(recipe_text(options.recipe()), encoding="utf-8")
        found = None if calibration is None else _calibration_record(calibration, stats, guide)
        files, content = describe_files(job.out), content_sha256(job.digests)
        said = manifest(build, files, content, scores, options, calibration=found, observed=noted)
        write_json(job.out / MANIFEST, said)
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


def open_calibration(
    checkpoint: Checkpoint, options: CompressOptions, work: Path, *, trust_remote_code: bool = False
) -> Calibration | None:
    """The model with the calibration text, None where neither rule nor quantizer asks for data.

    Args:
        checkpoint: the model.
        options: what to do.
        work: folder for hidden states that do not fit in memory.
        trust_remote_code: run Python code of the checkpoint.

    Raises:
        InvalidText: the text.
        UnsupportedModel: an encoder-decoder.
    """
    if not (_wants_stats(options) or needs_moment(options.make_quantizer()) or options.repair_routers):
        return None
    return Calibration(checkpoint, options.text, work / "scratch", trust_remote_code=trust_remote_code)


def measure(
    calibration: Calibration | None,
    options: CompressOptions,
    work: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ExpertStats | None:
    """The statistics that the rule asks for: from the file that the options name, or measured now and written there.

    Args:
        calibration: from `open_calibration`.
        options: what to do.
        work: keeps finished layers, so that a run that was killed goes on; None keeps them in memory.
        overwrite: discard what a run with other settings left in `work`.
        progress: counts layers.

    Raises:
        JobMismatch: statistics of another model, text or rounding.
    """
    if calibration is None or not _wants_stats(options):
        return None
    meter = options.make_meter(options.make_rule())
    if options.stats is not None and options.stats.exists():
        return reuse(options.stats, calibration.fingerprint, meter)
    folder = None if work is None else work / "calibration"
    stats = calibration.statistics(meter, folder, overwrite=overwrite, progress=progress)
    if options.stats is not None:
        save_stats(stats, options.stats)
    return stats


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
    found = Calibration(checkpoint, options.text, work / "scratch", trust_remote_code=trust_remote_code)
    try:
        stats = found.statistics(meter, work / "calibration", overwrite=overwrite, progress=progress)
        save_stats(stats, target)
    except OSError as error:
        raise storage_error(error, work) from error
    shutil.rmtree(work)
    return stats


def _wants_stats(options: CompressOptions) -> bool:
    if options.plan is not None or not needs_scores(options.make_allocator()):
        return False
    return needs_stats(options.make_rule())


def _guide(calibration: Calibration, quantizer: Quantizer, options: CompressOptions, store: Store) -> CalibratedGuide:
    return CalibratedGuide(
        calibration.stream,
        quantizer,
        store,
        affinity=options.affinity,
        all_experts=options.all_experts,
        repair=RouterRepair() if options.repair_routers else None,
    )


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
            measure_folder = partial(_folder_bytes, scores=scores, options=options, stats=stats)
            plan = ByteBudget(checkpoint, options, measure_folder).plan(scores)
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


def _calibration_record(
    calibration: Calibration, stats: ExpertStats | None, guide: CalibratedGuide | None
) -> dict[str, Any]:
    """What the manifest says of the text: what it was, the experts it hardly reached, what became of the routing."""
    rare = {} if guide is None else guide.rare
    if stats is not None:
        rare = {name: layer.rare() for name, layer in stats.layers.items()}
    changed = {} if guide is None else guide.changed
    return {
        **calibration.fingerprint,
        "rare_experts": {name: experts for name, experts in rare.items() if experts},
        "routing_changed": {name: {"before": before, "after": after} for name, (before, after) in changed.items()},
    }


def folder_files(
    build: PackedBuild,
    scores: Scores | CostTable | None,
    options: CompressOptions,
    stats: ExpertStats | None = None,
) -> dict[str, int]:
    """Name -> bytes of every file that `compress` will write, from headers; the manifest at most so many.

    Args:
        build: the packed model.
        scores: or costs, which the manifest holds.
        options: of the run.
        stats: which the folder holds where a rule asked for them.
    """
    extra = {RECIPE: len(recipe_text(options.recipe()).encode())}
    if stats is not None:
        extra[STATS_FILE] = stats_bytes(stats)
    longest = longest_notes({layer.name: layer.experts for layer in build.checkpoint.layers})
    record = None
    if _wants_stats(options) or needs_moment(options.make_quantizer()) or options.repair_routers:
        record = _largest_record(build.checkpoint)
    return predict_files(
        build,
        options.shard_bytes,
        extra,
        lambda files, content: manifest(build, files, content, scores, options, calibration=record, observed=longest),
    )


def _folder_bytes(
    build: PackedBuild, *, scores: Scores | CostTable | None, options: CompressOptions, stats: ExpertStats | None
) -> int:
    return sum(folder_files(build, scores, options, stats).values())


def _largest_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """A calibration record as long as one can be: what it will say is known only afterwards."""
    half = 0.12345678901234567
    return {
        **dict.fromkeys(("model", "text"), "0" * 64),
        **dict.fromkeys(("sequences", "sequence_length"), 10**9),
        "rare_experts": {layer.name: list(range(layer.experts)) for layer in checkpoint.layers},
        "routing_changed": {layer.name: {"before": half, "after": half} for layer in checkpoint.layers},
    }


def manifest(
    build: PackedBuild,
    files: Mapping[str, Mapping[str, Any]],
    content: str,
    scores: Scores | CostTable | None,
    options: CompressOptions,
    *,
    calibration: Mapping[str, Any] | None = None,
    observed: Noted | None = None,
) -> dict[str, Any]:
    """`moesaic.json`; no times and no paths, so that the same command gives the same bytes.

    Args:
        build: the packed model.
        files: every other file of its folder with size and SHA-256.
        content: one SHA-256 over all that was read.
        scores: the scores that its plan came from, None where it came from none.
        options: of the run.
        calibration: what is to be said of the text, None where none was used.
        observed: from `note_experts`.
    """
    checkpoint = build.checkpoint
    shapes = [layer.shape for layer in checkpoint.layers]
    code_bits, bpw = build.plan.reached_bits(shapes), stored_bpw(build)
    found = {
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
        "calibration": None if calibration is None else dict(calibration),
        "observed": observed or {},
        "files": dict(files),
    }
    return with_own_size(found)
