"""What a packed folder holds is known before it is written, also where data was used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic import Checkpoint, CompressOptions, compress
from moesaic.calibrated import measure, open_calibration
from moesaic.contents import STATS_FILE, calibration_record, folder_files
from moesaic.packing.build import PackedBuild
from moesaic.packing.manifest import read_manifest
from moesaic.pipeline import make_plan
from tests.talking import talking_copy, write_text

Tiny = Callable[[str], Path]


@pytest.fixture
def model(tiny_checkpoint: Tiny, tmp_path: Path) -> Path:
    """A tiny model that reads."""
    return talking_copy(tiny_checkpoint("qwen3_moe"), tmp_path / "model")


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "fisher_error"},
        {"rule": "activation_frequency"},
        {"quantizer": "gptq"},
        {"rule": "quant_error", "quantizer": "gptq", "repair_routers": True, "per_matrix": True},
    ],
)
def test_a_calibrated_folder_is_foretold(changes: dict, model: Path, tmp_path: Path) -> None:
    """Statistics and what the manifest says of the text count; the manifest is foretold as long as it can become."""
    text = write_text(tmp_path / "text.txt", 600)
    options = CompressOptions(bits=2.5, calibration=(text,), sequence_length=64, **changes)
    checkpoint = Checkpoint.open(model)
    stats = measure(open_calibration(checkpoint, options, tmp_path / "work"), options)
    scores, plan = make_plan(checkpoint, options, stats)
    build = PackedBuild(checkpoint, plan, options.make_quantizer(), other_bits=4, head_bits=8)
    foretold = folder_files(build, scores, options, stats)
    out = compress(model, tmp_path / "out", options)
    found = {path.name: path.stat().st_size for path in out.iterdir()}
    assert (STATS_FILE in found) == (stats is not None)
    assert found.pop("moesaic.json") <= foretold.pop("moesaic.json")
    assert found == foretold


def test_the_manifest_says_what_the_text_did(model: Path, tmp_path: Path) -> None:
    """Model, text, experts that it hardly reached, and routing before and after repair are on record."""
    text = write_text(tmp_path / "text.txt", 64)
    options = CompressOptions(
        bits=2, quantizer="gptq", repair_routers=True, calibration=(text,), sequences=1, sequence_length=64
    )
    found = read_manifest(compress(model, tmp_path / "out", options))["calibration"]
    assert (found["sequences"], found["sequence_length"]) == (1, 64)
    layers = [layer.name for layer in Checkpoint.open(model).layers]
    assert list(found["routing_changed"]) == layers
    assert set(found["rare_experts"]) <= set(layers)
    assert all(found["rare_experts"].values()), "layers without rare experts are left out"


def test_a_record_of_a_calibration() -> None:
    """Layers without rare experts are left out."""
    found = calibration_record({"model": "m"}, {"a": [], "b": [1, 2]}, {"a": (0.5, 0.25)})
    assert found == {
        "model": "m",
        "rare_experts": {"b": [1, 2]},
        "routing_changed": {"a": {"before": 0.5, "after": 0.25}},
    }
