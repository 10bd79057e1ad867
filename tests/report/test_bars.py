"""Speed and memory."""

from __future__ import annotations

from moesaic.report.bars import bars
from moesaic.report.sources import Material
from tests.report.made_up import run, three_runs

NUMBERS = {"low": 1, "mixed": 2, "high": 3}


def test_a_figure_a_measure_and_bars_by_value() -> None:
    """Only what was measured has a figure; bars are as long as their values; machines are named."""
    made = {each.name: each for each in bars(three_runs(), NUMBERS)}
    assert set(made) == {"decode-tokens-per-second", "peak-memory-bytes"}
    decode = made["decode-tokens-per-second"]
    long = [float(each.get("width")) for each in decode.drawing.iter("rect")]
    assert [round(each / max(long), 3) for each in long] == [round(speed / 12, 3) for speed in (10, 11, 12)]
    assert "a machine" in decode.caption
    assert decode.rows[0] == ("low", "10 tokens/s")
    assert made["peak-memory-bytes"].rows[0] == ("low", "500.0 MB")


def test_nothing_measured() -> None:
    """Without records there is no figure."""
    assert bars(Material((run("a"),)), {"a": 1}) == []
