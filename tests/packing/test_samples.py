"""Stored models of every format version: they have to verify, decode and load forever."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from moesaic.packing.layout import MatrixLayout, unpack
from moesaic.packing.manifest import verify
from moesaic.runtime.hf import load
from tests.packing.make_sample import matrices
from tests.packing.sample_model import EXPERTS, LAYER, LINEARS, PLAN, SAMPLE

WANTED = json.loads(SAMPLE.with_name("v1.sha256.json").read_text())


def digest(matrix: torch.Tensor) -> str:
    """As in the stored list."""
    return hashlib.sha256(matrix.float().contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def test_sample_is_small_and_sound() -> None:
    """The folder fits the repository, and every byte of it is as it was written."""
    verify(SAMPLE)
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= 60_000


def test_naive_decoder_reads_the_sample() -> None:
    """Read from the page alone, the matrices are those of the day when the sample was written."""
    assert matrices(SAMPLE) == WANTED
    assert len(WANTED) == 3 * EXPERTS + len(LINEARS)


def test_package_reads_the_sample() -> None:
    """The package of today dequantizes the sample's experts and linear layers to the same numbers."""
    model = load(SAMPLE)
    layer = model.get_submodule(LAYER).packed_layer()
    for expert in range(EXPERTS):
        roles = {"gate": (layer.gate_up, 0), "up": (layer.gate_up, 1), "down": (layer.down, 0)}
        for role, (entry, place) in roles.items():
            if entry.widths[expert] == 16:
                matrix = entry.stored(expert)
            else:
                matrix = dequantized(*entry.blob(expert, place))
            assert digest(matrix) == WANTED[f"{expert}.{role}"], (expert, role)
    for name in LINEARS:
        linear = model.get_submodule(f"model.layers.0.self_attn.{name}")
        assert digest(dequantized(linear.packed, linear.layout)) == WANTED[name]


def dequantized(blob: torch.Tensor, layout: MatrixLayout) -> torch.Tensor:
    """One matrix through the package's own reader."""
    return unpack(blob, layout).dequantize()


def test_sample_runs() -> None:
    """The stored model still generates."""
    model = load(SAMPLE)
    with torch.inference_mode():
        out = model.generate(torch.tensor([[2, 3, 4]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert out.shape == (1, 7)


@pytest.mark.parametrize("entry", ["gate_up", "down"])
def test_sample_has_every_width(entry: str) -> None:
    """The sample keeps its purpose: all widths occur, in the plan and in the file."""
    config = json.loads((SAMPLE / "config.json").read_text())["quantization_config"]
    assert config["experts"][LAYER][entry] == " ".join(map(str, PLAN.layers[LAYER].entry(entry)))
