"""Speed and memory, measured in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesaic.errors import MoesaicError
from moesaic.evaluate.speed import measure_speed


def test_a_packed_model(packed: Path) -> None:
    """A process of its own loads, reads and generates, and its figures make sense."""
    speed = measure_speed(packed, [5, 6, 7, 8], new_tokens=4, threads=1)
    assert speed.prefill_tokens_per_second > 0
    assert speed.decode_tokens_per_second > 0
    assert speed.load_seconds > 0
    assert 0 < speed.resident_before_bytes <= speed.resident_loaded_bytes <= speed.peak_memory_bytes
    assert speed.resident_loaded_bytes - speed.resident_before_bytes < 400e6
    assert speed.backend


def test_a_failure_gives_its_reason(tmp_path: Path) -> None:
    """What goes wrong in that process is told here in one line, with the folder."""
    with pytest.raises(MoesaicError, match=r"nowhere: measuring its speed failed: .+") as raised:
        measure_speed(tmp_path / "nowhere", [5, 6])
    assert "\n" not in str(raised.value)
