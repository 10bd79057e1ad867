"""A calibrated run that is killed again and again ends with the bytes of an undisturbed one."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.processes import run_cli, start_cli
from tests.talking import make_tokenizer, write_text
from tests.tiny import save_tiny

KILLS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, so that there is something to go on from."""
    folder = save_tiny(tmp_path_factory.mktemp("resume") / "model", "qwen2_moe", num_hidden_layers=6)
    make_tokenizer().save_pretrained(folder)
    write_text(folder.parent / "text.txt", 3000)
    return folder


def command(model: Path, out: Path) -> list[object]:
    """Everything that is kept between layers: statistics forward and back, hidden states, repaired routers."""
    return [
        *("compress", model, "-o", out, "--bits", 2.5, "--rule", "fisher_error", "--quantizer", "gptq"),
        *("--repair-routers", "--calibration", model.parent / "text.txt", "--sequence-length", 64, "--threads", 1),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_killed_at_twenty_random_moments(model: Path, tmp_path: Path) -> None:
    """Kill -9 at random moments; the same command goes on from what is finished, to the same bytes."""
    start = time.monotonic()
    result = run_cli(*command(model, tmp_path / "whole"))
    assert result.code == 0, result.err
    took = time.monotonic() - start
    wanted = contents(tmp_path / "whole")
    rng = random.Random(5)
    killed = finished = gone_on = 0
    while killed < KILLS:
        out = tmp_path / f"run{finished}"
        if out.with_name(out.name + ".partial").exists():
            gone_on += 1
        running = start_cli(*command(model, out))
        moment = time.monotonic() + rng.uniform(0.05, 1.0) * took
        while running.alive and time.monotonic() < moment:
            time.sleep(0.002)
        if running.alive:
            running.send(signal.SIGKILL)
            killed += running.finish().code == -signal.SIGKILL
        else:
            assert running.finish().code == 0
        if out.exists():
            assert contents(out) == wanted
            finished += 1
    last = tmp_path / f"run{finished}"
    assert run_cli(*command(model, last)).code == 0
    assert contents(last) == wanted
    assert gone_on > 5, "most runs found something to go on from"


def test_other_text_is_refused_and_nothing_is_mixed(model: Path, tmp_path: Path) -> None:
    """Unfinished work of another calibration text is not gone on with, and the message says what changed."""
    out = tmp_path / "out"
    running = start_cli(*command(model, out))
    running.wait_for(lambda: any(out.with_name("out.partial").glob("calibration/forward-*.safetensors")))
    running.send(signal.SIGKILL)
    running.finish()
    (model.parent / "other.txt").write_text((model.parent / "text.txt").read_text()[::-1])
    changed = [*command(model, out), "--calibration", model.parent / "other.txt"]
    result = run_cli(*changed)
    assert result.code == 1
    assert "changed: text" in result.err
    assert "--overwrite" in result.err
    assert run_cli(*changed, "--overwrite").code == 0
