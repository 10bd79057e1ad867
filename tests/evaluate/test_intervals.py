"""Intervals of shares and of paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from moesaic.evaluate.intervals import paired_mean_difference, paired_share_difference, share

BITS = st.lists(st.booleans(), min_size=1, max_size=60)


@given(BITS)
@settings(max_examples=100, deadline=None)
def test_the_share_has_wilsons_interval(hits: list[bool]) -> None:
    """The interval is the one that SciPy calls Wilson's, and surrounds the share."""
    found = share(hits)
    wanted = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    assert found.value == sum(hits) / len(hits)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_paired_difference(pairs: list[tuple[bool, bool]]) -> None:
    """The value is the difference of the shares, inside its interval, and changes its sign with the order."""
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    found, back = paired_share_difference(ours, theirs), paired_share_difference(theirs, ours)
    assert found.value == pytest.approx(share(ours).value - share(theirs).value, abs=1e-12)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_the_paired_difference_by_hand() -> None:
    """100 items, 12 gained and 4 lost: (13 - 5) / 102 ± 1.96 sqrt((13/102 + 5/102 - (8/102)²) / 102)."""
    ours = [True] * 12 + [False] * 4 + [True] * 84
    theirs = [False] * 12 + [True] * 4 + [True] * 84
    found = paired_share_difference(ours, theirs)
    half = 1.959964 * math.sqrt((18 / 102 - (8 / 102) ** 2) / 102)
    assert found.value == pytest.approx(0.08)
    assert (found.low, found.high) == pytest.approx((8 / 102 - half, 8 / 102 + half), abs=1e-6)


def test_the_paired_interval_covers() -> None:
    """Of 2000 samples of two related models with a known difference, about 95 % have it inside their interval."""
    generator = torch.Generator().manual_seed(3)
    kinds = torch.multinomial(torch.tensor([0.6, 0.1, 0.05, 0.25]), 2000 * 80, True, generator=generator).view(2000, 80)
    covered = 0
    for row in kinds.tolist():
        ours, theirs = [kind in (0, 1) for kind in row], [kind in (0, 2) for kind in row]
        found = paired_share_difference(ours, theirs)
        covered += found.low <= 0.05 <= found.high
    assert 0.93 < covered / 2000 < 0.98


def test_pairing_is_narrower_than_two_intervals() -> None:
    """Two models that agree on nearly all items differ by less than their own intervals are wide."""
    ours = [True, False] * 100
    theirs = [True, False] * 98 + [True, True] * 2
    found = paired_share_difference(ours, theirs)
    assert found.high - found.low < (share(ours).high - share(ours).low) / 2


def test_the_mean_difference_by_hand() -> None:
    """Differences 1 and 3: mean 2, standard error 1; a single pair has no width."""
    found = paired_mean_difference([2.0, 5.0], [1.0, 2.0])
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - 1.959964, 2 + 1.959964), abs=1e-6)
    assert paired_mean_difference([2.0], [1.0]).low == paired_mean_difference([2.0], [1.0]).high == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: share([]), "of nothing"),
        (lambda: paired_share_difference([], []), "of nothing"),
        (lambda: paired_mean_difference([], []), "of nothing"),
        (lambda: paired_share_difference([True], [True, False]), "longer"),
        (lambda: paired_mean_difference([1.0], [1.0, 2.0]), "longer"),
    ],
)
def test_nothing_has_no_share(wrong: Callable[[], object], words: str) -> None:
    """No items are an error of the caller, and so are lists of different lengths."""
    with pytest.raises(ValueError, match=words):
        wrong()
