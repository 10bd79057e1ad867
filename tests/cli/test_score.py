"""`moesaic score`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moesaic import Checkpoint
from moesaic.scores import SCORERS, needs_stats
from tests.processes import call_cli


@pytest.mark.parametrize("rule", sorted(name for name, made in SCORERS.items() if not needs_stats(made())))
def test_every_rule(rule: str, mixtral: Path) -> None:
    """Every rule prints a scores file, and says on standard error how long it took and what it read."""
    result = call_cli("score", mixtral, "--rule", rule, "--allocator", "three_level")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["format"] == "moesaic-scores/1"
    assert [len(scores) for scores in found["layers"].values()] == [8, 8]
    assert result.err.startswith(f"{rule}: ")
    assert "of tensors read" in result.err


def test_router_norm_reads_only_routers(mixtral: Path, tmp_path: Path) -> None:
    """Router norms cost the bytes of the routers; with --out the file is written and nothing is printed."""
    out = tmp_path / "scores.json"
    result = call_cli("score", mixtral, "--rule", "router_norm", "-o", out)
    assert result.out == ""
    layers = Checkpoint.open(mixtral).layers
    size = sum(layer.experts * layer.hidden * 2 for layer in layers)
    assert f"{size / 1000:.1f} kB of tensors read" in result.err
    assert list(json.loads(out.read_text())["layers"]) == [layer.name for layer in layers]


def test_json_and_quiet_say_nothing_else(mixtral: Path) -> None:
    """With --json or --quiet standard error stays empty."""
    for flag in ("--json", "--quiet"):
        result = call_cli("score", mixtral, flag)
        assert result.err == ""
        assert json.loads(result.out)


def test_seeds(mixtral: Path) -> None:
    """Random scores follow the seed."""
    found = [call_cli("score", mixtral, "--rule", "random", "--seed", seed, "-q").out for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
