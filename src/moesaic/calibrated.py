"""What data adds to the road: the text run through the model, statistics for rules, second moments for quantizers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesaic.calibrate.files import save_stats
from moesaic.calibrate.guide import CalibratedGuide
from moesaic.calibrate.repair import RouterRepair
from moesaic.calibrate.run import Calibration, reuse
from moesaic.calibrate.store import Store
from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.writer import storage_error
from moesaic.contents import calibration_record
from moesaic.errors import JobMismatch
from moesaic.options import CompressOptions
from moesaic.progress import SILENT, Progress
from moesaic.quantize import needs_moment
from moesaic.records import ExpertStats


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
    if not options.wants_calibration:
        return None
    return Calibration(
        checkpoint,
        options.text,
        work / "scratch",
        all_experts=options.all_experts,
        trust_remote_code=trust_remote_code,
    )


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
    if calibration is None or not options.wants_stats:
        return None
    meter = options.make_meter(options.make_rule())
    if options.stats is not None and options.stats.exists():
        return reuse(options.stats, calibration.fingerprint, meter)
    with leaving_no_empty_work(work):
        folder = None if work is None else work / "calibration"
        stats = calibration.statistics(meter, folder, overwrite=overwrite, progress=progress)
        if options.stats is not None:
            save_stats(stats, options.stats)
    return stats


@contextmanager
def leaving_no_empty_work(work: Path | None) -> Iterator[None]:
    """What a failed measurement leaves: layers that a later run can go on from, and nothing where there are none.

    Raises:
        StorageFull: in place of what the system says of a full disk.
    """
    try:
        yield
    except JobMismatch:
        raise  # the work of another run
    except BaseException as error:
        if work is not None and not any(work.rglob("*.safetensors")):
            shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and work is not None:
            raise storage_error(error, work) from error
        raise


def guide_for(calibration: Calibration | None, options: CompressOptions, folder: Path) -> CalibratedGuide | None:
    """What rounds with data; None where the quantizer wants none and no router is repaired.

    Args:
        calibration: from `open_calibration`.
        options: what to do.
        folder: keeps the hidden states between layers, so that a run that was killed goes on.
    """
    quantizer = options.make_quantizer()
    if calibration is None or not (needs_moment(quantizer) or options.repair_routers):
        return None
    return CalibratedGuide(
        calibration.stream,
        quantizer,
        Store(folder),
        affinity=options.affinity,
        all_experts=options.all_experts,
        repair=RouterRepair() if options.repair_routers else None,
    )


def record_of(
    calibration: Calibration | None, stats: ExpertStats | None, guide: CalibratedGuide | None
) -> dict[str, Any] | None:
    """What the manifest says of the text: what it was, the experts it hardly reached, what became of the routing."""
    if calibration is None:
        return None
    rare = {} if guide is None else guide.rare
    if stats is not None:
        rare = {name: layer.rare() for name, layer in stats.layers.items()}
    return calibration_record(calibration.fingerprint, rare, {} if guide is None else guide.changed)
