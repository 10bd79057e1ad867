"""The table of skipping policies."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from experiments.skipping_table import __main__ as command
from experiments.skipping_table import draw
from experiments.skipping_table.cases import RULES, cases, steps_around
from experiments.skipping_table.rows import Rows, read_record, rounded, write_record
from experiments.skipping_table.summary import difference_at, kl_at, neighbours, table
from tests.talking import talking_copy

from moesaic.fit.mask_routers import Training


def row(case: str, share: float, kl: float, spread: float = 0.1) -> dict[str, Any]:
    """A made-up row with four windows."""
    windows = [kl * (1 + spread * each) for each in (-1, 1, -0.5, 0.5)]
    return {
        "model": "m",
        "bits": "2.5",
        "case": case,
        "target": share,
        "share": share,
        "kl": kl,
        "kl_interval": [kl * 0.9, kl * 1.1],
        "perplexity": 20.0,
        "perplexity_interval": [19.0, 21.0],
        "kl_windows": windows,
        "seconds": 1.0,
    }


ROWS = [row("otp", 0.9, 0.001), row("otp", 0.7, 0.004), row("odp", 0.85, 0.003), row("odp", 0.75, 0.012)]


def test_interpolation_is_of_the_logarithm() -> None:
    """Half way in the share is the geometric mean of the two KL; outside a curve there is nothing."""
    found = kl_at(ROWS, "otp", 0.8)
    assert found is not None
    assert found["mean"] == pytest.approx(0.002)
    assert found["low"] < 0.002 < found["high"]
    assert kl_at(ROWS, "odp", 0.9) is None
    assert neighbours(ROWS, "otp", 0.9) is not None


def test_differences_are_paired() -> None:
    """Windows that are hard for both cancel: the interval of the difference is that of the same windows."""
    found = difference_at(ROWS, "odp", "otp", 0.8)
    assert found is not None
    assert found["mean"] == pytest.approx(0.006 - 0.002)
    one = kl_at(ROWS, "odp", 0.8)
    assert one is not None
    assert found["high"] - found["low"] < one["high"] - one["low"]
    text = table(ROWS, [0.8], 0.8)
    assert "0.00400" in text
    assert "| otp |" in text


def test_steps_that_fixed_k_can_make() -> None:
    """Around 0.8 of 12 places lie 9 and 10; a share that it can reach is alone; one place a layer is the least."""
    assert steps_around(0.8, 12, least=6) == [9 / 12, 10 / 12]
    assert steps_around(0.75, 12, least=6) == [9 / 12]
    assert steps_around(0.51, 12, least=6) == [7 / 12]


def test_shares_that_cannot_be_are_left_out() -> None:
    """With two experts a token half the activations is no target; every policy comes at every other share."""
    found = list(cases([*RULES, "otp"], [0.8, 0.5], Training(), layers=6, top_k=2))
    assert {case.name for case in found} == {*RULES, "otp"}
    assert all(case.target > 0.5 for case in found)
    assert len({case.key for case in found}) == len(found)


def test_an_interrupted_run_keeps_its_rows(tmp_path: Path) -> None:
    """Rows are there again, a line that was cut off is not, and floats are short."""
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    rows.add("m/2.5/otp@0.8", {"kl": 1 / 3, "kl_windows": [math.pi]})
    with path.open("a") as file:
        file.write('{"key": "m/2.5/odp@0.8", "kl": 0.')
    again = Rows(path)
    assert "m/2.5/otp@0.8" in again
    assert "m/2.5/odp@0.8" not in again
    assert again.of("m/2.5/") == [{"key": "m/2.5/otp@0.8", "kl": 0.33333, "kl_windows": [3.1416]}]
    assert rounded({"a": [1, 2.0000001, "x", None]}) == {"a": [1, 2.0, "x", None]}


def test_figures_come_from_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is written, read and drawn: one figure a measure, the same bytes twice."""
    record = tmp_path / "skipping_x.json"
    write_record(record, ROWS, {"rule": "made up"})
    assert read_record(record) == ROWS
    monkeypatch.setattr(sys, "argv", ["draw", str(record), "--out", str(tmp_path / "figures")])
    draw.main()
    first = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    draw.main()
    assert set(first) == {"skipping_x_kl.svg", "skipping_x_perplexity.svg"}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}


def test_a_run_on_a_tiny_model(tiny_talking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command fits, measures and saves; a second call measures nothing again."""
    text = tmp_path / "text.txt"
    text.write_text("The miller's cat sat on the wall and watched the carts go by. It was market day. " * 60)
    save = tmp_path / "record.json"
    arguments = f"{tiny_talking} --work {tmp_path / 'work'} --bits 2.5 --rule max_var --shares 0.8 0.7 --window 32"
    arguments += f" --policies otp threshold fixed_k --text {text} --calibration {text} --tokens 1024 --held 256"
    monkeypatch.setattr(sys, "argv", ["table", *arguments.split(), "--save", str(save)])
    command.main()
    rows = json.loads(save.read_text())["rows"]
    assert {each["case"] for each in rows} == {"otp", "threshold", "fixed_k"}
    assert all(0.5 <= each["share"] <= 1 and each["kl"] >= 0 for each in rows)
    before = (tmp_path / "work" / "rows.jsonl").read_bytes()
    command.main()
    assert (tmp_path / "work" / "rows.jsonl").read_bytes() == before


@pytest.fixture
def tiny_talking(tiny_checkpoint: Any, tmp_path: Path) -> Path:
    """A tiny Mixtral with a tokenizer."""
    return talking_copy(tiny_checkpoint("mixtral"), tmp_path / "tiny")
