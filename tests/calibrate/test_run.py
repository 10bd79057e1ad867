"""From calibration options to statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moesaic.calibrate.files import save_stats
from moesaic.calibrate.meter import ErrorMeter
from moesaic.calibrate.run import Calibration, model_sha256, reuse
from moesaic.calibrate.text import CalibrationText
from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import InvalidText, JobMismatch
from moesaic.quantize import RTN
from tests.talking import make_tokenizer, talking_copy, write_text
from tests.tiny import save_tiny

METER = ErrorMeter(frozenset({"output_error"}), (1, 2), RTN(group_size=32))


@pytest.fixture
def model(tiny_checkpoint, tmp_path: Path) -> Path:
    return talking_copy(tiny_checkpoint("mixtral"), tmp_path / "model")


def calibration(model: Path, tmp_path: Path, all_experts: bool = False, **text) -> Calibration:
    file = write_text(tmp_path / "text.txt", 2000)
    chosen = CalibrationText(**{"files": (file,), "sequences": 4, "length": 32, **text})
    return Calibration(Checkpoint.open(model), chosen, tmp_path / "scratch", all_experts=all_experts)


def test_sequences_are_no_longer_than_the_model_is_made_for(model: Path, tmp_path: Path) -> None:
    """A length beyond the model's positions is cut to them."""
    found = calibration(model, tmp_path, length=2048)
    assert found.stream.tokens.shape == (4, 128)
    assert found.fingerprint["sequence_length"] == 128


def test_statistics_are_used_again(model: Path, tmp_path: Path) -> None:
    """A file of the same model, text and rounding is taken as it is; a part of what it holds is enough."""
    found = calibration(model, tmp_path)
    stats = found.statistics(METER, None)
    save_stats(stats, tmp_path / "stats.safetensors")
    again = reuse(tmp_path / "stats.safetensors", found.fingerprint, METER)
    assert again.fingerprint == stats.fingerprint
    reuse(tmp_path / "stats.safetensors", found.fingerprint, replace(METER, bits=(2,)))
    reuse(tmp_path / "stats.safetensors", found.fingerprint, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": (2, 3)}, r"at \[1, 2\] bits.*at \[2, 3\]"),
        ({"quantizer": RTN(group_size=64)}, "group_size=64"),
        ({"wanted": frozenset({"fisher"})}, "wants fisher"),
        ({"entries": True}, "errors by matrix"),
    ],
)
def test_statistics_of_other_settings_are_refused(change: dict, words: str, model: Path, tmp_path: Path) -> None:
    """Each message says what the file has, what the run wants, and the remedy."""
    found = calibration(model, tmp_path)
    save_stats(found.statistics(METER, None), tmp_path / "stats.safetensors")
    with pytest.raises(JobMismatch, match=words):
        reuse(tmp_path / "stats.safetensors", found.fingerprint, replace(METER, **change))


@pytest.mark.parametrize("what", ["model", "text", "sequences"])
def test_statistics_of_another_run_are_refused(what: str, model: Path, tmp_path: Path) -> None:
    """Another model or another text is noticed by its fingerprint."""
    found = calibration(model, tmp_path)
    save_stats(found.statistics(None, None), tmp_path / "stats.safetensors")
    if what == "model":
        other = save_tiny(tmp_path / "other", "mixtral", seed=1)
        make_tokenizer().save_pretrained(other)
        changed = calibration(other, tmp_path)
    else:
        changed = calibration(model, tmp_path, **({"seed": 1} if what == "text" else {"sequences": 3}))
    with pytest.raises(JobMismatch, match=rf"another {'text' if what != 'model' else 'model'}.*--stats"):
        reuse(tmp_path / "stats.safetensors", changed.fingerprint, None)


@pytest.mark.parametrize("measured", [False, True])
def test_statistics_over_other_tokens_are_refused(measured: bool, model: Path, tmp_path: Path) -> None:
    """Moments over every token and over an expert's own are not taken for each other, either way round."""
    found = calibration(model, tmp_path, all_experts=measured)
    save_stats(found.statistics(None, None), tmp_path / "stats.safetensors")
    reuse(tmp_path / "stats.safetensors", found.fingerprint, None)
    with pytest.raises(JobMismatch, match="another all experts"):
        reuse(tmp_path / "stats.safetensors", calibration(model, tmp_path, all_experts=not measured).fingerprint, None)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """A token that the model does not have is found before anything runs."""
    folder = save_tiny(tmp_path / "small", "mixtral", vocab_size=64)
    make_tokenizer().save_pretrained(folder)
    with pytest.raises(InvalidText, match="tokenizer belongs to another model"):
        calibration(folder, tmp_path)


def test_fine_tuned_copies_differ(tiny_checkpoint, tmp_path: Path) -> None:
    """The model's digest tells two trainings of one architecture apart."""
    first = Checkpoint.open(tiny_checkpoint("mixtral"))
    second = Checkpoint.open(save_tiny(tmp_path / "second", "mixtral", seed=1))
    assert model_sha256(first) == model_sha256(first)
    assert model_sha256(first) != model_sha256(second)
