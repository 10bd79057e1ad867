"""`moesaic prune`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.processes import call_cli
from tests.talking import write_text


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Some text."""
    return write_text(tmp_path / "text.txt", 2000)


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A packed folder of the test's own."""
    return Path(shutil.copytree(packed, tmp_path / "pruned"))


def test_prunes_evaluates_and_takes_it_back(folder: Path, text: Path) -> None:
    """The road of a user: fit, read the share, generate, measure with and without, take the policy out."""
    fit = call_cli("prune", folder, "--policy", "odp", "--target", 0.8, "--calibration", text, "--window", 40, "--json")
    assert fit.code == 0, fit.err
    found = json.loads(fit.out)
    assert found["reached"] == pytest.approx(0.8, abs=0.02)
    assert call_cli("verify", folder).code == 0
    arguments = ("evaluate", folder, "--text", text, "--window", 40, "--max-tokens", 400, "--json")
    measured = json.loads(call_cli(*arguments, "--no-speed").out)
    assert measured["pruning"] == "odp, target 0.8"
    assert measured["expert_share"] == pytest.approx(0.8, abs=0.05)
    assert len(measured["expert_share_layers"]) == 2
    plain = json.loads(call_cli(*arguments, "--no-speed", "--no-pruning").out)
    assert plain["pruning"] is plain["expert_share"] is plain["expert_share_layers"] is None
    assert plain["perplexity"] != measured["perplexity"]
    assert call_cli("generate", folder, "--prompt", "The", "--max-new-tokens", 3, "--json").code == 0
    gone = call_cli("prune", folder, "--off")
    assert "is gone" in gone.out
    assert json.loads(call_cli(*arguments, "--no-speed").out)["perplexity"] == plain["perplexity"]


def test_trains_mask_routers(folder: Path, text: Path) -> None:
    """otp is the default, its knobs are options, and the summary names the KL."""
    result = call_cli(
        "prune", folder, "--target", 0.7, "--calibration", text, "--window", 40, "--steps", 2, "--candidates", "subsets"
    )
    assert result.code == 0, result.err
    assert "otp, " in result.out
    assert "nats a token" in result.out
    data = json.loads((folder / "pruning.json").read_text())
    assert data["knobs"]["candidates"] == "subsets"
    assert data["details"]["training"]["steps"] == 2


def test_the_share_is_in_the_run_records(folder: Path, text: Path, tmp_path: Path) -> None:
    """Run records have the share of all layers and of each, with the policy among the conditions."""
    call_cli("prune", folder, "--policy", "threshold", "--calibration", text, "--window", 40)
    saved = tmp_path / "records.json"
    call_cli("evaluate", folder, "--text", text, "--window", 40, "--max-tokens", 200, "--no-speed", "--save", saved)
    records = json.loads(saved.read_text())["records"]
    shares = [record for record in records if "expert_share" in record["name"]]
    assert [record["name"] for record in shares] == ["expert_share"] + ["layer_expert_share"] * 2
    assert all(record["conditions"]["pruning"] == "threshold, target 0.75" for record in shares)
    assert {record["conditions"].get("layer") for record in shares[1:]} == {
        f"model.layers.{layer}.mlp.experts" for layer in range(2)
    }


def test_speed_is_measured_with_the_policy(folder: Path, text: Path) -> None:
    """The process that measures speed loads the folder with its policy, and without it when asked."""
    call_cli("prune", folder, "--policy", "threshold", "--calibration", text, "--window", 40)
    for more in ((), ("--no-pruning",)):
        result = call_cli("evaluate", folder, "--text", text, "--max-tokens", 200, "--new-tokens", 2, "--json", *more)
        assert result.code == 0, result.err
        assert json.loads(result.out)["decode_tokens_per_second"] > 0


def test_steps_are_for_otp(folder: Path) -> None:
    """An option that would do nothing is refused."""
    result = call_cli("prune", folder, "--policy", "odp", "--steps", 3)
    assert result.code == 2
    assert "--steps" in result.err


def test_shares_of_several_texts_are_shown(folder: Path, text: Path, tmp_path: Path) -> None:
    """One command measures a text a domain: a line each, with the share that ran, and one for all."""
    call_cli("prune", folder, "--policy", "threshold", "--calibration", text, "--window", 40)
    other = tmp_path / "numbers.txt"
    other.write_text("3.14159 + 2.71828 = 5.85987; " * 12)
    result = call_cli("evaluate", folder, "--text", text, "--text", other, "--window", 40, "--no-speed")
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if line.strip().startswith(("│ text.txt", "│ numbers", "│ all"))]
    assert len(lines) == 3
    assert all("%" in line for line in lines)
