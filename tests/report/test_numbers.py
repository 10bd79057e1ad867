"""Numbers for people."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.report.numbers import log_ticks, number_text, rounded, share_text, size_text, ticks


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2.5, "2.5"), (12345.6, "12,346"), (0.03124, "0.03124"), (35.7131, "35.71"), (-0.5, "-0.5"),
     (3.1e-5, "3.1e-05"), (1.5e9, "1.5e+09"), (100, "100")],
)  # fmt: skip
def test_number_text(value: float, text: str) -> None:
    """Four significant digits, thousands set apart, exponents only for the very small and very large."""
    assert number_text(value) == text


def test_sizes_and_shares() -> None:
    """Bytes in powers of ten; shares in per cent."""
    assert [size_text(size) for size in (999, 1000, 11_700_000, 2.5e9, 3e12)] == [
        "999 B",
        "1.0 kB",
        "11.7 MB",
        "2.5 GB",
        "3.0 TB",
    ]
    assert share_text(0.9345) == "93.5 %"


def test_rounded_keeps_four_digits() -> None:
    """What is written into the page has no more digits than are shown."""
    assert [rounded(value) for value in (1 / 3, -12345.6, 0.0)] == [0.3333, -12350.0, 0.0]


@given(st.floats(-1e6, 1e6), st.floats(1, 1e6))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    """Ticks lie in the interval, ascend evenly, and are neither none nor many."""
    high = low + width
    found = ticks(low, high)
    room = 1e-9 * max(abs(low), abs(high))
    assert 1 <= len(found) <= 12
    assert all(low - room <= tick <= high + room for tick in found)
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3) for step in steps)


def test_an_interval_of_no_width_has_one_tick() -> None:
    """A single value does not divide by zero."""
    assert ticks(3, 3) == [3]


def test_log_ticks() -> None:
    """Powers of ten over several decades; finer where there are few."""
    assert log_ticks(0.01, 1000) == [0.01, 0.1, 1, 10, 100, 1000]
    assert log_ticks(1, 30) == [1, 2, 5, 10, 20]
    assert log_ticks(3.1, 3.9) == [3.5]
