"""From calibration options to a model that runs on text, and to its statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.calibrate.activations import Shelf
from moesaic.calibrate.files import load_stats
from moesaic.calibrate.gather import gather
from moesaic.calibrate.meter import ErrorMeter
from moesaic.calibrate.store import Store
from moesaic.calibrate.stream import LayerStream
from moesaic.calibrate.text import CalibrationText, calibration_texts, cut_sequences
from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import InvalidText, JobMismatch
from moesaic.progress import SILENT, Progress
from moesaic.records import ExpertStats
from moesaic.runtime.hf import open_tokenizer


class Calibration:
    """A model and a text, ready to be run through layer by layer.

    Attributes:
        stream: the model and the text.
        fingerprint: what identifies both.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: CalibrationText,
        scratch: Path,
        *,
        all_experts: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """Cut the text and read what is outside the decoder layers.

        Args:
            checkpoint: the model.
            text: what to run it on.
            scratch: folder for hidden states that do not fit in memory; made when it is needed.
            all_experts: every token counts for the second moments of every expert.
            trust_remote_code: run Python code of the checkpoint.
        """
        tokens = sequences_for(checkpoint, text, trust_remote_code=trust_remote_code)
        self.stream = LayerStream(checkpoint, tokens, Shelf(scratch), trust_remote_code=trust_remote_code)
        self.fingerprint = {
            "model": model_sha256(checkpoint),
            "text": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
            "sequences": tokens.shape[0],
            "sequence_length": tokens.shape[1],
            **({"all_experts": True} if all_experts else {}),
        }

    def statistics(
        self, meter: ErrorMeter | None, folder: Path | None, *, overwrite: bool = False, progress: Progress = SILENT
    ) -> ExpertStats:
        """Measure, going on from what an earlier run kept in `folder`.

        Raises:
            JobMismatch: another run's work is there.
        """
        settings = meter_settings(meter)
        identity = {**self.fingerprint, **settings}
        store = None if folder is None else Store.open(folder, identity, overwrite=overwrite)
        layers = gather(
            self.stream, meter, all_experts="all_experts" in self.fingerprint, store=store, progress=progress
        )
        bits = () if meter is None else meter.bits
        return ExpertStats(layers, bits, str(settings["quantizer"]), self.fingerprint)


def sequences_for(checkpoint: Checkpoint, text: CalibrationText, *, trust_remote_code: bool = False) -> Tensor:
    """The sequences for a model. `[n, length]` int64

    Raises:
        InvalidText: text that cannot be read or is too short, or a tokenizer of another model.
    """
    tokenizer = open_tokenizer(checkpoint.folder, trust_remote_code=trust_remote_code)
    longest = getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None) or text.length

    def tokenize(piece: str) -> list[int]:
        found: list[int] = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    texts = calibration_texts(text.files)
    tokens = cut_sequences(texts, tokenize, count=text.sequences, length=min(text.length, longest), seed=text.seed)
    vocabulary = checkpoint.config.get_text_config().vocab_size
    if int(tokens.max()) >= vocabulary:
        raise InvalidText(
            f"{checkpoint.folder}: its tokenizer makes token {int(tokens.max())}, but the model has {vocabulary}; "
            "the tokenizer belongs to another model"
        )
    return tokens


def meter_settings(meter: ErrorMeter | None) -> dict[str, Any]:
    """What decides the errors that are measured."""
    if meter is None:
        return {"quantizer": "", "bits": [], "errors": [], "entries": False}
    return {
        "quantizer": str(meter.quantizer),
        "bits": list(meter.bits),
        "errors": sorted(meter.wanted),
        "entries": meter.entries,
    }


def reuse(path: Path, fingerprint: Mapping[str, Any], meter: ErrorMeter | None) -> ExpertStats:
    """Statistics from a file, if they are what would be measured.

    Raises:
        JobMismatch: of another model, text or rounding, or without an error that is wanted; says which.
        CorruptFile: not a statistics file.
    """
    stats = load_stats(path)
    for key in {**fingerprint, **stats.fingerprint}:
        wanted = fingerprint.get(key)
        if stats.fingerprint.get(key) != wanted:
            raise JobMismatch(
                f"{path}: measured with another {key.replace('_', ' ')} ({_short(stats.fingerprint.get(key))}, here "
                f"{_short(wanted)}); name another file with --stats, or delete it to measure again"
            )
    if meter is None:
        return stats
    first = next(iter(stats.layers.values()))
    missing = sorted(name for name in meter.wanted if getattr(first, name) is None)
    if meter.entries and meter.wanted & {"output_error", "fisher"} and not missing:
        missing = ["errors by matrix"] if first.output_error_entries is first.fisher_entries is None else []
    settings = meter_settings(meter)
    if stats.quantizer != settings["quantizer"] or not set(meter.bits) <= set(stats.bits) or missing:
        raise JobMismatch(
            f"{path}: has errors of {stats.quantizer or 'no rounding'} at {list(stats.bits)} bits, and this run wants "
            f"{', '.join(missing) or 'those'} of {settings['quantizer']} at {list(meter.bits)}; name another file with "
            "--stats, or delete it to measure again"
        )
    return stats


def model_sha256(checkpoint: Checkpoint) -> str:
    """A digest that tells fine-tuned copies of a model apart without reading it all: configuration and routers."""
    digest = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    for layer in checkpoint.layers:
        digest.update(checkpoint.router(layer).numpy().tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 12 else str(value)
