"""`moesaic inspect`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.processes import call_cli


def test_a_checkpoint(mixtral: Path) -> None:
    """Layers, experts, top-k, router and sizes, and what compress would do with each kind."""
    result = call_cli("inspect", mixtral)
    assert result.code == 0
    for words in ("mixtral", "8 of 18.4 k weights in model.layers.0…1.block_sparse_moe", "top-k"):
        assert words in result.out
    assert "packed, each expert at its own width" in result.out
    assert "kept: they decide which experts run" in result.out


def test_json(mixtral: Path) -> None:
    """One object, with the sizes by kind."""
    found = json.loads(call_cli("inspect", mixtral, "--json").out)
    assert found["model_type"] == "mixtral"
    assert [each["experts"] for each in found["expert_layers"]] == [8, 8]
    assert sum(each["size"] for each in found["kinds"]) == found["total_bytes"]


def test_check_asks_the_architecture(mixtral: Path, own_checkpoint: Callable[[str], Path]) -> None:
    """With --check a configuration that does not fit the weights is found, which names and shapes alone do not tell."""
    assert "Checked: " in call_cli("inspect", mixtral, "--check").out
    folder = own_checkpoint("mixtral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    assert call_cli("inspect", folder).code == 0
    result = call_cli("inspect", folder, "--check")
    assert result.code == 1
    assert "do not belong together" in result.err


def test_a_packed_folder(packed: Path) -> None:
    """A packed folder shows its plan as a map, and what was reached."""
    result = call_cli("inspect", packed)
    manifest = json.loads((packed / "moesaic.json").read_text())
    first = manifest["plan"]["layers"]["model.layers.0.mlp.experts"].replace(" ", "")
    assert f"layer 0  {first}" in result.out
    assert "2.500 a weight of the experts" in result.out
    found = json.loads(call_cli("inspect", packed, "--json").out)
    assert found["packed"]
    assert found["stored_bpw"] == manifest["stored_bpw"]


def test_something_else(tmp_path: Path) -> None:
    """A folder of something else is a failure in one line."""
    result = call_cli("inspect", tmp_path)
    assert result.code == 1
    assert result.err.count("\n") == 1
