"""`moesaic calibrate`, and statistics in the other commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moesaic.calibrate.files import load_stats
from tests.processes import call_cli, run_cli
from tests.talking import talking_copy, write_text


@pytest.fixture
def model(tiny_checkpoint, tmp_path: Path) -> Path:
    return talking_copy(tiny_checkpoint("mixtral"), tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> list[object]:
    return ["--calibration", write_text(tmp_path / "text.txt", 2000), "--sequences", 4, "--sequence-length", 32]


def test_one_pass_serves_all_rules(model: Path, text: list[object], tmp_path: Path) -> None:
    """Measured once; every rule on data then scores, allocates and compresses from the file."""
    stats = tmp_path / "stats.safetensors"
    result = call_cli("calibrate", model, "-o", stats, *text, "--levels", "1,2,3", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["sequences"], found["bits"]) == (4, [1, 2, 3])
    assert load_stats(stats).bits == (1, 2, 3)
    for rule in ("quant_error", "fisher_error", "hessian_trace", "activation_frequency", "significance+max_var"):
        levels = ["--levels", "1,2,3"]
        made = call_cli(
            "score", model, "--rule", rule, "--stats", stats, *text, *levels, "-o", tmp_path / "scores.json"
        )
        assert made.code == 0, made.err
        out = tmp_path / rule
        packed = call_cli(
            *("compress", model, "-o", out, "--rule", rule, "--stats", stats, *text, *levels, "--bits", 2, "--json")
        )
        assert packed.code == 0, packed.err
        summary = json.loads(packed.out)
        assert summary["code_bits"] <= 2
        assert summary["calibration"]["sequences"] == 4
        assert (out / "calibration_stats.safetensors").is_file()
        assert call_cli("verify", out).code == 0


def test_a_file_that_exists_stays(model: Path, text: list[object], tmp_path: Path) -> None:
    """Statistics are not written over without a word."""
    stats = tmp_path / "stats.safetensors"
    assert call_cli("calibrate", model, "-o", stats, *text, "--rules", "none").code == 0
    again = call_cli("calibrate", model, "-o", stats, *text, "--rules", "none")
    assert again.code == 2
    assert "--overwrite" in again.err
    assert call_cli("calibrate", model, "-o", stats, *text, "--rules", "none", "--overwrite").code == 0


def test_rare_experts_are_named(model: Path, text: list[object], tmp_path: Path) -> None:
    """Experts that the text hardly reaches are named, and quantize all the same."""
    few = ["--sequences", 1, "--sequence-length", 4]
    result = call_cli("compress", model, "-o", tmp_path / "out", "--bits", 2, "--quantizer", "gptq", *text, *few)
    assert result.code == 0, result.err
    assert "rare experts  model.layers.0.mlp.experts: 0, 1" in result.out


def test_rules_that_are_unknown(model: Path, text: list[object], tmp_path: Path) -> None:
    """The nearest name is offered, and nothing is read."""
    result = call_cli("calibrate", model, "-o", tmp_path / "s", *text, "--rules", "quant_eror")
    assert result.code == 2
    assert "quant_error" in result.err
    assert not (tmp_path / "s.partial").exists()


@pytest.mark.parametrize("wrong", [["--sequences", 0], ["--calibration", "missing.txt"]])
def test_wrong_text(wrong: list[object], model: Path, tmp_path: Path) -> None:
    """One line, and nothing half-written."""
    out = tmp_path / "out"
    result = call_cli("compress", model, "-o", out, "--bits", 2, "--quantizer", "gptq", *wrong)
    assert result.code in (1, 2)
    assert len([line for line in result.err.splitlines() if "rror" in line]) == 1
    assert not out.exists()
    assert not out.with_name("out.partial").exists()


@pytest.mark.parametrize("command", ["calibrate", "compress"])
def test_no_room_for_statistics(command: str, model: Path, text: list[object], tmp_path: Path) -> None:
    """A disk that is full while statistics are made is told as such, and with room the same command succeeds."""
    more = ["--bits", 2, "--rule", "fisher_error"] if command == "compress" else []
    argv = [command, model, "-o", tmp_path / "out", *text, *more]
    result = run_cli(*argv, file_bytes=1000)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert "no room left on the disk" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
    assert run_cli(*argv).code == 0
    assert not (tmp_path / "out.partial").exists()
