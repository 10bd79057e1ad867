"""What a packed folder holds: its files, how large each is going to be, and what `moesaic.json` says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.calibrate.files import stats_bytes
from moesaic.checkpoint.reader import Checkpoint
from moesaic.options import CompressOptions
from moesaic.packing.build import PackedBuild
from moesaic.packing.layout import FORMAT_VERSION
from moesaic.packing.manifest import library_versions
from moesaic.packing.sizes import predict_files, stored_bpw, with_own_size
from moesaic.recipe import RECIPE, recipe_text
from moesaic.records import CostTable, ExpertStats, Scores
from moesaic.scores.observed import Noted, longest_notes

STATS_FILE = "calibration_stats.safetensors"


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
    record = _largest_record(build.checkpoint) if options.wants_calibration else None
    return predict_files(
        build,
        options.shard_bytes,
        extra,
        lambda files, content: manifest(build, files, content, scores, options, calibration=record, observed=longest),
    )


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


def calibration_record(
    fingerprint: Mapping[str, Any],
    rare: Mapping[str, Sequence[int]],
    changed: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    """What the manifest says of a calibration.

    Args:
        fingerprint: of model and text.
        rare: expert layer -> the experts that hardly any token reached.
        changed: expert layer -> share of tokens that go to other experts, before and after the repair of its router.
    """
    return {
        **fingerprint,
        "rare_experts": {name: list(experts) for name, experts in rare.items() if experts},
        "routing_changed": {name: {"before": before, "after": after} for name, (before, after) in changed.items()},
    }


def _largest_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """A calibration record as long as one can be: what it will say is known only afterwards."""
    half = 0.12345678901234567
    hashes, numbers = dict.fromkeys(("model", "text"), "0" * 64), dict.fromkeys(("sequences", "sequence_length"), 10**9)
    return calibration_record(
        {**hashes, **numbers, "all_experts": True},
        {layer.name: range(layer.experts) for layer in checkpoint.layers},
        {layer.name: (half, half) for layer in checkpoint.layers},
    )
