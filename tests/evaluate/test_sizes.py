"""Sizes of packed folders and of ordinary checkpoints, against the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from moesaic import CompressOptions, compress
from moesaic.errors import MoesaicError
from moesaic.evaluate.sizes import measure_sizes
from tests.tiny import CONFIGS

OUTPUT = "block_sparse_moe.output_linear.weight"  # Granite's name for the second layer of its experts


def expert_tensors(folder: Path) -> dict[str, tuple[int, int]]:
    """Bytes and numbers of elements of the tensors of routed experts, biases left out."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                routed = ".experts." in name or name.endswith(("block_sparse_moe.input_linear.weight", OUTPUT))
                if routed and "shared" not in name and "bias" not in name and tensor.dim() > 1:
                    found[name] = (tensor.numel() * tensor.element_size(), tensor.numel())
    return found


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_an_ordinary_checkpoint(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    """A checkpoint in bfloat16 has 16 bits a weight, and as many expert bytes as its expert tensors."""
    folder = tiny_checkpoint(family)
    sizes = measure_sizes(folder)
    tensors = expert_tensors(folder).values()
    assert sizes.code_bits == sizes.stored_bpw == 16
    assert sizes.expert_bytes == sum(size for size, _ in tensors)
    assert sizes.expert_weights == sum(number for _, number in tensors)
    assert sizes.total_bytes == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "switch_transformers"])
@pytest.mark.parametrize("bits", [2.5, 16])
def test_a_packed_folder(family: str, bits: float, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Stored bits count every byte of the expert blobs; the total counts every file."""
    folder = compress(tiny_checkpoint(family), tmp_path / "out", CompressOptions(bits=bits))
    sizes = measure_sizes(folder)
    tensors = expert_tensors(folder)
    assert sizes.code_bits == bits
    assert sizes.expert_bytes == sum(size for size, _ in tensors.values())
    assert sizes.expert_weights == measure_sizes(tiny_checkpoint(family)).expert_weights
    assert sizes.stored_bpw == 8 * sizes.expert_bytes / sizes.expert_weights
    assert sizes.stored_bpw >= bits
    assert sizes.total_bytes == sum(path.stat().st_size for path in folder.iterdir())
    (folder / "records.json").write_text("[]")
    assert measure_sizes(folder).total_bytes == sizes.total_bytes  # what was measured is not a part of the model


@pytest.mark.parametrize("key", ["code_bits", "stored_bpw", "expert_bytes", "expert_weights"])
def test_a_manifest_that_lacks_a_figure(key: str, packed: Path, tmp_path: Path) -> None:
    """A damaged manifest is named, with what it lacks."""
    manifest = json.loads((packed / "moesaic.json").read_text())
    del manifest[key]
    (tmp_path / "moesaic.json").write_text(json.dumps(manifest))
    with pytest.raises(MoesaicError, match=f'moesaic.json: no "{key}"'):
        measure_sizes(tmp_path)


def test_neither(tmp_path: Path) -> None:
    """A folder of something else has no sizes."""
    with pytest.raises(MoesaicError, match=r"config\.json"):
        measure_sizes(tmp_path)
