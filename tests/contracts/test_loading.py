"""What loading a packed folder costs, and that nothing loads it wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic import CompressOptions, compress
from moesaic.kernels import cpu
from tests.processes import run
from tests.tiny import save_tiny

MEGABYTE = 1_000_000
BACKENDS = ["reference", *(["cpu"] if cpu.available()[0] else [])]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder of some 40 MB, most of it experts."""
    folder = tmp_path_factory.mktemp("large")
    source = save_tiny(folder / "source", "mixtral", hidden_size=1024, intermediate_size=2048, num_hidden_layers=1)
    options = CompressOptions(bits=6, levels=(4, 8), quantizer="rtn-minmax", other_bits=4)
    return compress(source, folder / "out", options)


def memory() -> dict[str, int]:
    """Resident bytes of this process, by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")}


def load_and_measure(folder: str, other_folder: str, backend: str) -> None:
    """In a process of its own: load, read every byte, generate, and print what that did to the memory."""
    os.environ["MOESAIC_KERNELS"] = backend
    moesaic.load(other_folder)  # warm up: what is imported on the way is not counted
    before = memory()
    model = moesaic.load(folder)
    loaded = memory()
    with torch.inference_mode():
        for buffer in model.buffers():
            buffer.sum()
        model.generate(torch.arange(2, 34)[None], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    used = memory()
    mapped = mapped_ranges(folder)
    packed = [buffer for buffer in model.buffers() if buffer.dtype == torch.uint8]
    inside = [any(low <= buffer.data_ptr() < high for low, high in mapped) for buffer in packed]
    aligned = [buffer.data_ptr() % 64 == 0 for buffer in packed]
    kinds = {"before": before, "loaded": loaded, "used": used}
    print(json.dumps({**kinds, "inside": inside, "aligned": aligned}))


def mapped_ranges(folder: str) -> list[tuple[int, int]]:
    """Address ranges in which files of the folder are mapped."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.partition("/")[1] and ("/" + line.partition("/")[2]).startswith(folder):
            low, high = line.split()[0].split("-")
            found.append((int(low, 16), int(high, 16)))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_tensors_are_the_mapped_file(large: Path, tmp_path: Path, backend: str) -> None:
    """Packed tensors are aligned views of the mapped file; loading and using them makes no copy of a layer."""
    small = compress(save_tiny(tmp_path / "source", "mixtral"), tmp_path / "small", CompressOptions(bits=2.5))
    result = run(load_and_measure, str(large), str(small), backend)
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    size = (large / "model.safetensors").stat().st_size
    assert size > 35 * MEGABYTE
    assert found["inside"]
    assert all(found["inside"])
    assert all(found["aligned"])
    copied = found["loaded"]["RssAnon"] - found["before"]["RssAnon"]
    assert copied < 5 * MEGABYTE
    dequantized_layer = 8 * 3 * 1024 * 2048 * 4  # as float32
    grown = found["used"]["RssAnon"] - found["before"]["RssAnon"]
    assert grown < (dequantized_layer / 2 if backend == "reference" else size / 2)  # the native kernels unpack nothing
    mapped = found["used"]["RssFile"] - found["before"]["RssFile"]
    assert mapped < 1.1 * size + 100 * MEGABYTE


WITHOUT = """
import sys
from transformers import AutoModelForCausalLM
assert "moesaic" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print("it loaded", type(model))
"""
WITH = """
import sys
if sys.argv[2] == "first":
    import moesaic
from transformers import AutoModelForCausalLM
if sys.argv[2] == "last":
    import moesaic
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(sum(type(module).__name__ == "PackedExperts" for module in model.modules()))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny packed folder."""
    folder = tmp_path_factory.mktemp("packed")
    return compress(save_tiny(folder / "source", "mixtral"), folder / "out", CompressOptions(bits=2.5))


def test_without_moesaic_it_does_not_load(packed: Path) -> None:
    """transformers alone refuses a packed folder instead of filling in random weights."""
    command = [sys.executable, "-c", WITHOUT, packed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "it loaded" not in done.stdout
    assert "moesaic" in done.stderr


@pytest.mark.parametrize("when", ["first", "last"])
def test_after_import_moesaic_it_loads(when: str, packed: Path) -> None:
    """`import moesaic` is enough, before transformers is imported or after."""
    command = [sys.executable, "-c", WITH, packed, when]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
