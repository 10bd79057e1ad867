"""Figures come from records alone and are the same for the same record."""

from pathlib import Path

import pytest
from experiments.figures import curve, dots, panels
from experiments.intervals import over_runs


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    """A figure in the repository changes only when its record does."""
    for name in ("a.svg", "b.svg"):
        with panels(tmp_path / name, 2) as (left, right):
            curve(left, [1, 2], [over_runs([1.0, 2.0]), over_runs([3.0, 4.0])], "runs", 0)
            dots(right, {"one": over_runs([1.0, 2.0]), "two": over_runs([5.0])})
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_figure_that_fails_leaves_no_file(tmp_path: Path) -> None:
    """Nothing half-drawn stands under a figure's name."""

    def fail() -> None:
        with panels(tmp_path / "a.svg"):
            raise ValueError("half-drawn")

    with pytest.raises(ValueError, match="half-drawn"):
        fail()
    assert not (tmp_path / "a.svg").exists()
