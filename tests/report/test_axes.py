"""From values to pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moesaic.report.axes import Scale, across, frame, upward


def test_a_scale_meets_its_ends() -> None:
    """The ends of the interval fall on the ends of the axis, the middle in the middle."""
    line = Scale(2, 4, 100, 300)
    assert [line(value) for value in (2, 3, 4)] == [100, 200, 300]
    log = Scale(1, 100, 0, 10, log=True)
    assert [round(log(value), 9) for value in (1, 10, 100)] == [0, 5, 10]


@pytest.mark.parametrize("values", [[3.0], [0.0], [1.0, 2.0], [-5.0, 5.0]])
def test_all_values_are_inside(values: list[float]) -> None:
    """Every value has a place with room around it, a single one too."""
    for scale in (across(values), upward(values)):
        assert all(scale.low < value < scale.high for value in values)


def test_whole_numbers() -> None:
    """Layers have no halves."""
    assert replace(across([0.0, 2.0]), whole=True).ticks() == [0, 1, 2]


def test_options_of_scales() -> None:
    """A scale can begin at zero, or be logarithmic."""
    assert upward([1.0, 2.0], zero=True).low == 0
    assert across([1.0, 100.0], log=True).low > 0
    assert across([5.0, 5.0], log=True).low < 5


def test_the_frame_has_titles_with_units() -> None:
    """Both axes say what they show."""
    texts = [each.text for each in frame(across([0.0, 1.0]), upward([0.0, 1.0]), "size (MB)", "speed (tokens/s)")]
    assert {"size (MB)", "speed (tokens/s)"} <= set(texts)
