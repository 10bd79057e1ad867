"""What data adds to the road, and where it adds nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesaic import Checkpoint, CompressOptions
from moesaic.calibrate.files import load_stats
from moesaic.calibrated import guide_for, measure, open_calibration, record_of
from moesaic.errors import JobMismatch
from tests.talking import talking_copy, write_text

Tiny = Callable[[str], Path]


@pytest.fixture
def model(tiny_checkpoint: Tiny, tmp_path: Path) -> Checkpoint:
    """A tiny model that reads."""
    return Checkpoint.open(talking_copy(tiny_checkpoint("mixtral"), tmp_path / "model"))


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., CompressOptions]:
    """Options with a short text."""
    text = write_text(tmp_path / "text.txt", 600)
    return lambda **changes: CompressOptions(bits=2.5, calibration=(text,), sequence_length=64, **changes)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, (False, False, False)),
        ({"rule": "alpha_tail"}, (False, False, False)),
        ({"rule": "fisher_error"}, (True, True, False)),
        ({"rule": "fisher_error", "allocator": "uniform"}, (False, False, False)),
        ({"quantizer": "gptq"}, (True, False, True)),
        ({"repair_routers": True}, (True, False, True)),
        ({"rule": "routing_weight", "quantizer": "gptq"}, (True, True, True)),
    ],
)
def test_data_is_used_where_it_is_asked_for(
    changes: dict[str, Any],
    wanted: tuple[bool, bool, bool],
    model: Checkpoint,
    options: Callable[..., CompressOptions],
    tmp_path: Path,
) -> None:
    """Rules ask for statistics, quantizers and the repair of routers for a guide; without either no text is read."""
    asked = options(**changes)
    calibration = open_calibration(model, asked, tmp_path / "work")
    measured = measure(calibration, asked)
    guided = guide_for(calibration, asked, tmp_path / "states")
    assert (calibration is not None, measured is not None, guided is not None) == wanted
    assert (record_of(calibration, measured, guided) is not None) == wanted[0]


def test_statistics_are_written_and_used_again(
    model: Checkpoint, options: Callable[..., CompressOptions], tmp_path: Path
) -> None:
    """The file that --stats names is written, then taken as it is; another text is refused."""
    path = tmp_path / "stats.safetensors"
    asked = options(rule="quant_error", stats=path)
    calibration = open_calibration(model, asked, tmp_path / "work")
    measured = measure(calibration, asked)
    assert measured is not None
    assert load_stats(path).fingerprint == measured.fingerprint
    before = path.stat().st_mtime_ns
    again = measure(calibration, asked)
    assert again is not None
    assert path.stat().st_mtime_ns == before
    assert again.layers.keys() == measured.layers.keys()
    other = options(rule="quant_error", stats=path, seed=1)
    with pytest.raises(JobMismatch, match="another text"):
        measure(open_calibration(model, other, tmp_path / "work"), other)
