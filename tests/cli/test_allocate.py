"""`moesaic allocate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import call_cli


@pytest.fixture(scope="module")
def scores(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the tiny model."""
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    assert call_cli("score", mixtral, "--rule", "router_norm+max_var", "-o", path).code == 0
    return path


def test_a_plan_is_printed_or_written(scores: Path, mixtral: Path, tmp_path: Path) -> None:
    """The plan carries the budget and what was reached, and is the same in a file as on standard output."""
    command = ("allocate", scores, "--model", mixtral, "--bits", 2.3)
    result = call_cli(*command)
    plan = json.loads(result.out)
    assert result.err == ""
    assert plan["requested_bits"] == 2.3
    assert plan["reached_bits"] == 2.25
    assert plan["method"] == "router_norm+max_var, three_level 1/2/3"
    assert all(sum(map(int, widths.split())) == 18 for widths in plan["layers"].values())
    written = call_cli(*command, "-o", tmp_path / "plan.json")
    assert (written.code, written.out) == (0, "")
    assert json.loads((tmp_path / "plan.json").read_text()) == plan


def test_allocators_and_levels(scores: Path, mixtral: Path) -> None:
    """Allocator and levels are taken."""
    command = ("allocate", scores, "--model", mixtral, "--bits", 3)
    plan = json.loads(call_cli(*command, "--allocator", "two_level", "--levels", "2,4").out)
    assert {width for widths in plan["layers"].values() for width in widths.split()} == {"2", "4"}
    assert "two_level 2/4" in plan["method"]


def costs_file(path: Path, layer: str = "L") -> Path:
    """Costs of one layer of eight experts, measured elsewhere."""
    rows = [[(8.0 - expert) * 4.0**-bits for bits in (1, 2, 3)] for expert in range(8)]
    path.write_text(json.dumps({"format": "moesaic-costs/1", "bits": [1, 2, 3], "layers": {layer: {"costs": rows}}}))
    return path


@pytest.mark.parametrize("option", ["--method", "--allocator"])
def test_costs_need_no_model(option: str, tmp_path: Path) -> None:
    """A costs file says its own layers; the method is named by either option, the gap is told."""
    command = ("allocate", costs_file(tmp_path / "costs.json"), "--bits", 2)
    result = call_cli(*command, option, "pmq", "-o", tmp_path / "plan.json")
    assert (result.code, result.out) == (0, "")
    plan = json.loads((tmp_path / "plan.json").read_text())
    widths = list(map(int, plan["layers"]["L"].split()))
    assert sum(widths) == 16
    assert widths == sorted(widths, reverse=True)
    result = call_cli(*command)
    assert "global 1/2/3" in json.loads(result.out)["method"]
    assert "gap 0): 2 bits" in result.err


def test_knobs_of_the_allocators_of_costs(tmp_path: Path) -> None:
    """Form, solver and required widths arrive; `none` requires nothing."""
    command = ("allocate", costs_file(tmp_path / "costs.json"), "--bits", 1.25)
    assert call_cli(*command, "--method", "pmq").code == 2
    plan = json.loads(call_cli(*command, "--method", "pmq", "--form", "paper", "--at-least", "none").out)
    assert plan["layers"]["L"] == "2 2 1 1 1 1 1 1"
    assert "lagrangian" in call_cli(*command, "--method", "global", "--solver", "lagrangian").out
    assert "3" in json.loads(call_cli(*command, "--at-least", "3").out)["layers"]["L"]


def test_scores_and_costs_are_not_mixed_up(scores: Path, mixtral: Path, tmp_path: Path) -> None:
    """The wrong noun, a knob that means nothing, scores without their model, costs of another model: one line each."""
    costs = costs_file(tmp_path / "costs.json")
    for command, code, words in [
        ((costs, "--method", "three_level"), 2, "needs scores"),
        ((scores, "--model", mixtral, "--method", "pmq"), 2, "needs costs"),
        ((scores,), 2, "--model"),
        ((costs, "--method", "global", "--form", "paper"), 2, "form means nothing to the allocator global"),
        ((costs, "--method", "pmq", "--form", "old"), 2, "released, paper"),
        ((costs, "--model", mixtral), 1, "made for another model"),
    ]:
        result = call_cli("allocate", *command, "--bits", 2.5)
        assert result.code == code
        assert words in result.err
        assert result.out == ""


def test_compress_says_where_costs_are_allocated(mixtral: Path, tmp_path: Path) -> None:
    """`compress` has no costs to give to an allocator that needs them, and says how to make a plan."""
    arguments = ("--rule", "router_norm", "--allocator", "pmq", "--bits", 2)
    result = call_cli("compress", mixtral, "-o", tmp_path / "out", *arguments)
    assert result.code == 2
    assert "moesaic allocate COSTS.json" in result.err


def test_costs_of_entries_give_widths_of_their_own(tmp_path: Path) -> None:
    """A costs file with gate_up and down apart gives a plan with a line for each; allocators that cannot say so."""
    rows = [[(8.0 - expert) * 4.0**-bits for bits in (1, 2, 3)] for expert in range(8)]
    layers = {"L/gate_up": {"costs": rows, "weights": 20}, "L/down": {"costs": rows[::-1], "weights": 10}}
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"format": "moesaic-costs/1", "bits": [1, 2, 3], "layers": layers}))
    plan = json.loads(call_cli("allocate", path, "--bits", 2).out)
    assert plan["method"].endswith("per matrix")
    assert set(plan["layers"]["L"]) == {"gate_up", "down"}
    assert plan["reached_bits"] <= 2
    result = call_cli("allocate", path, "--bits", 2, "--method", "pmq")
    assert (result.code, "--allocator global" in result.err) == (2, True)
