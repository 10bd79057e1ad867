"""A skipping policy in a packed folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.errors import CorruptFile, InvalidPolicy
from moesaic.packing.pruning import PRUNING, fingerprint, read_pruning, remove_pruning, write_pruning
from moesaic.prune import Odp, Otp, Pruning

MANIFEST: dict[str, Any] = {
    "source": {"content_sha256": "abc"},
    "plan": {"layers": {"a": "1 2"}},
    "files": {"model.safetensors": {"bytes": 3, "sha256": "x"}},
}


def made_up(protect: float = 0.1) -> Pruning:
    """A policy for two layers."""
    layers = {f"model.layers.{i}.experts": {"threshold": torch.tensor(0.25 * i)} for i in range(2)}
    return Pruning("odp", Odp(protect=protect), 2, 0.8, 0.79, layers, {"tokens": 7})


def test_survives_the_file(tmp_path: Path) -> None:
    """What is read is what was written: name, knobs, numbers, tensors and details."""
    write_pruning(tmp_path, made_up(), MANIFEST)
    found = read_pruning(tmp_path, MANIFEST)
    assert found is not None
    wanted = made_up()
    assert (found.name, found.policy, found.top_k) == ("odp", Odp(protect=0.1), 2)
    assert (found.target, found.reached, found.details) == (0.8, 0.79, {"tokens": 7})
    assert {name: state["threshold"].item() for name, state in found.layers.items()} == {
        name: state["threshold"].item() for name, state in wanted.layers.items()
    }


def test_mask_routers_survive_the_file(tmp_path: Path) -> None:
    """All tensors of a mask router come back with their shapes and values, and an infinite threshold too."""
    state = Otp(width=3).start(4, 6, torch.Generator().manual_seed(0), experts=8) | {
        "threshold": torch.tensor(-torch.inf)
    }
    write_pruning(tmp_path, Pruning("otp", Otp(width=3), 4, 0.5, 0.5, {"m.experts": state}), MANIFEST)
    found = read_pruning(tmp_path, MANIFEST)
    assert found is not None
    assert set(found.layers["m.experts"]) == set(state)
    assert all(torch.equal(found.layers["m.experts"][key], tensor) for key, tensor in state.items())


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    """No policy is None, and removing what is not there says so."""
    assert read_pruning(tmp_path, MANIFEST) is None
    assert not remove_pruning(tmp_path)


def test_a_new_one_replaces_the_old_one(tmp_path: Path) -> None:
    """One policy and its tensors are in the folder, and removing leaves nothing."""
    write_pruning(tmp_path, made_up(), MANIFEST)
    other = made_up(protect=0.3)
    other.layers["model.layers.0.experts"]["threshold"].fill_(0.9)  # type: ignore[index]
    write_pruning(tmp_path, other, MANIFEST)
    assert len(list(tmp_path.iterdir())) == 2
    found = read_pruning(tmp_path, MANIFEST)
    assert found is not None
    assert found.policy == Odp(protect=0.3)
    assert remove_pruning(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "word"), [("source", "another model"), ("plan", "another bit plan"), ("files", "files")]
)
def test_refuses_what_was_made_for_something_else(key: str, word: str, tmp_path: Path) -> None:
    """A policy knows model, plan and packed bytes, and says which of them differs."""
    write_pruning(tmp_path, made_up(), MANIFEST)
    other = MANIFEST | {key: {"content_sha256": "other"}}
    assert fingerprint(other) != fingerprint(MANIFEST)
    with pytest.raises(InvalidPolicy, match=word):
        read_pruning(tmp_path, other)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": "moesaic-pruning/9"}, "format"),
        ({"policy": None}, "unknown skipping policy"),
        ({"knobs": {"mu": 1}}, "knobs"),
        ({"knobs": {"protect": 7}}, "knobs"),
        ({"knobs": 5}, "knobs"),
        ({"top_k": "two"}, "not a number"),
        ({"tensors": {"file": "../elsewhere.safetensors"}}, "does not name a file"),
        ({"tensors": {"file": "pruning-gone.safetensors"}}, "missing"),
        ({"tensors": {}}, "does not name"),
        ({"made_for": 1}, "made_for"),
    ],
)
def test_damaged_json(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    """Every damaged field is named in one line, and nothing is loaded."""
    write_pruning(tmp_path, made_up(), MANIFEST)
    data = json.loads((tmp_path / PRUNING).read_text()) | change
    (tmp_path / PRUNING).write_text(json.dumps(data))
    with pytest.raises((CorruptFile, InvalidPolicy), match=word):
        read_pruning(tmp_path, MANIFEST)


@pytest.mark.parametrize("key", ["policy", "knobs", "made_for", "tensors", "reached"])
def test_missing_fields(key: str, tmp_path: Path) -> None:
    """A field that is not there is named."""
    write_pruning(tmp_path, made_up(), MANIFEST)
    data = json.loads((tmp_path / PRUNING).read_text())
    del data[key]
    (tmp_path / PRUNING).write_text(json.dumps(data))
    with pytest.raises(CorruptFile, match=f'no "{key}"'):
        read_pruning(tmp_path, MANIFEST)


def test_changed_tensors_are_noticed(tmp_path: Path) -> None:
    """The tensors carry a hash, so that a flipped bit is an error and no other policy."""
    write_pruning(tmp_path, made_up(), MANIFEST)
    file = next(tmp_path.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CorruptFile, match="bytes"):
        read_pruning(tmp_path, MANIFEST)


def test_refuses_nan(tmp_path: Path) -> None:
    """A threshold that is not a number would silently run one expert a token."""
    broken = made_up()
    broken.layers["model.layers.0.experts"]["threshold"].fill_(torch.nan)  # type: ignore[index]
    write_pruning(tmp_path, broken, MANIFEST)
    with pytest.raises(CorruptFile, match="NaN"):
        read_pruning(tmp_path, MANIFEST)
