"""Calibration statistics on disk."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moesaic.calibrate.files import load_stats, save_stats
from moesaic.errors import CorruptFile
from moesaic.records import ExpertStats, LayerStats


def made_up() -> ExpertStats:
    torch.manual_seed(0)
    layer = LayerStats(
        tokens=100,
        count=torch.tensor([70, 31, 0]),
        mass_before=torch.rand(3, dtype=torch.float64),
        mass=torch.rand(3, dtype=torch.float64),
        gate_up_moment=torch.rand(3, 8, dtype=torch.float64),
        down_moment=torch.rand(3, 4, dtype=torch.float64),
        output_error=torch.rand(3, 2, dtype=torch.float64),
    )
    return ExpertStats({"a.b": layer}, bits=(2, 3), quantizer="rtn", fingerprint={"seed": 1})


def test_round_trip(tmp_path):
    """What is saved is what is read, absent parts stay absent."""
    stats = made_up()
    save_stats(stats, tmp_path / "stats.safetensors")
    found = load_stats(tmp_path / "stats.safetensors")
    assert (found.bits, found.quantizer, found.fingerprint) == (stats.bits, stats.quantizer, stats.fingerprint)
    for role, tensor in stats.layers["a.b"].tensors().items():
        assert torch.equal(getattr(found.layers["a.b"], role), tensor)
    assert found.layers["a.b"].fisher is None


@pytest.mark.parametrize("damage", ["truncated", "other file", "missing tensor", "nan"])
def test_damaged_file(tmp_path, damage):
    """A file that is not sound is refused with its name."""
    path = tmp_path / "stats.safetensors"
    save_stats(made_up(), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "other file":
        save_file({"x": torch.zeros(1)}, path)
    else:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        if damage == "nan":
            tensors["a.b/mass"][1] = torch.nan
        else:
            del tensors["a.b/mass"]
        save_file(tensors, path, metadata)
    with pytest.raises(CorruptFile, match=r"stats\.safetensors"):
        load_stats(path)
