"""`moesaic plan`, and `compress --dry-run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from moesaic.cli.plan import budgets
from tests.processes import call_cli
from tests.talking import talking_copy, write_text


def test_one_budget_in_full(mixtral: Path) -> None:
    """The map, bytes by kind, needs of the run with their sources, the fit and the price, without colours in a pipe."""
    result = call_cli("plan", mixtral, "--bits", 2.5, "--gpu-hour", 3)
    assert result.code == 0
    assert result.err == ""
    for words in ("layer 0  ", "routed experts", "peak memory of the run", "from", "141 GB", "3 an hour", "fits"):
        assert words in result.out
    assert "\x1b" not in result.out


def test_json_and_the_real_thing(mixtral: Path, tmp_path: Path) -> None:
    """The JSON form has the plan that compress makes, and the size of the folder that comes out."""
    foreseen = json.loads(call_cli("plan", mixtral, "--bits", 2.5, "--no-measure", "--json").out)
    made = json.loads(call_cli("compress", mixtral, "-o", tmp_path / "out", "--bits", 2.5, "--json").out)
    manifest = json.loads((tmp_path / "out" / "moesaic.json").read_text())
    assert foreseen["plan"]["layers"] == manifest["plan"]["layers"]
    size = sum(f.stat().st_size for f in (tmp_path / "out").iterdir())
    assert (
        size <= foreseen["figures"]["folder_bytes"]["value"] <= 1.01 * size
    )  # the manifest is not longer than foreseen
    assert foreseen["figures"]["stored_bpw"]["value"] == made["stored_bpw"]


def test_a_dry_run_writes_nothing(mixtral: Path, tmp_path: Path) -> None:
    """--dry-run shows the same forecast and leaves the disk as it was; a target that exists is refused as ever."""
    result = call_cli("compress", mixtral, "-o", tmp_path / "out", "--bits", 2.5, "--dry-run", "--json")
    assert result.code == 0
    assert json.loads(result.out)["figures"]["peak_memory"]["value"] > 0
    assert list(tmp_path.iterdir()) == []


def test_several_budgets(mixtral: Path, tmp_path: Path) -> None:
    """A line each; sizes rise with the budget, and with costs the predicted cost falls."""
    rows = [[4.0 * (expert + 1) / width for width in (1, 2, 3)] for expert in range(8)]
    names = [f"model.layers.{number}.mlp.experts" for number in (0, 1)]
    costs = {"format": "moesaic-costs/1", "rule": "made up", "bits": [1, 2, 3]}
    (tmp_path / "costs.json").write_text(json.dumps({**costs, "layers": {name: {"costs": rows} for name in names}}))
    arguments = ("plan", mixtral, "--bits", "1.5,2,2.5", "--no-measure", "--costs", tmp_path / "costs.json")
    found = json.loads(call_cli(*arguments, "--json").out)["forecasts"]
    sizes = [each["figures"]["folder_bytes"]["value"] for each in found]
    assert sizes == sorted(sizes)
    predicted = [each["cost"] for each in found]
    assert predicted == sorted(predicted, reverse=True)
    assert len(set(predicted)) == 3
    shown = call_cli(*arguments).out
    assert "2.5 bits" in shown
    assert "█" in shown


def test_budgets_are_numbers() -> None:
    """Lists are cut at commas; what is no number is a wrong call."""
    assert budgets(bits="2,2.5") == [{"bits": 2.0}, {"bits": 2.5}]
    assert budgets(bits=None) == [{"bits": None}]
    with pytest.raises(typer.BadParameter, match="'x' is not a number"):
        budgets(bits="2,x")


def test_no_budget_is_a_wrong_call(mixtral: Path) -> None:
    """As for compress."""
    result = call_cli("plan", mixtral)
    assert result.code == 2
    assert "--bits" in result.err


def test_statistics_of_an_earlier_run_are_read(mixtral: Path, tmp_path: Path) -> None:
    """A rule that needs text is planned from a statistics file; without one the remedy is named."""
    model = talking_copy(mixtral, tmp_path / "model")
    text = ["--calibration", write_text(tmp_path / "text.txt", 1000), "--sequence-length", 32]
    stats = tmp_path / "stats.safetensors"
    assert call_cli("calibrate", model, "-o", stats, *text).code == 0
    asked = ["plan", model, "--bits", 2, "--rule", "fisher_error", "--no-measure", "--json"]
    found = call_cli(*asked, "--stats", stats)
    assert found.code == 0, found.err
    assert "fisher_error" in json.loads(found.out)["plan"]["method"]
    assert "--stats" in call_cli(*asked).err
