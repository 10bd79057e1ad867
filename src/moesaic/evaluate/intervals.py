"""95 % confidence intervals of shares, and of differences between two models on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moesaic.evaluate.quality import Mean

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def share(hits: Sequence[bool]) -> Mean:
    """A share of items with Wilson's score interval.

    Stays inside 0 to 1 and is not empty at 0 of n or n of n (Wilson 1927, J. Amer. Statist. Assoc. 22:209).

    Args:
        hits: one truth value for each item.

    Raises:
        ValueError: no items.
    """
    number = len(hits)
    if number == 0:
        raise ValueError("a share of nothing")
    value = sum(hits) / number
    middle = (value + Z**2 / (2 * number)) / (1 + Z**2 / number)
    half = Z / (1 + Z**2 / number) * math.sqrt(value * (1 - value) / number + Z**2 / (4 * number**2))
    # at 0 and 1 the bound is the value itself, up to rounding
    return Mean(value, min(value, max(0.0, middle - half)), max(value, min(1.0, middle + half)))


def paired_share_difference(model: Sequence[bool], reference: Sequence[bool]) -> Mean:
    """Share of the model minus share of the reference on the same items, with an interval of the paired difference.

    Only the items on which the two differ widen it, so that it is narrower than what the two shares' own intervals
    suggest. Adjusted Wald interval (Bonett & Price 2012, J. Educ. Behav. Stat. 37:479): one item is added to each of
    the two kinds of disagreement, which keeps it honest for few items and for none that differ.

    Args:
        model, reference: one truth value for each item, in the same order.

    Raises:
        ValueError: different lengths, or no items.
    """
    gained = sum(ours and not theirs for ours, theirs in zip(model, reference, strict=True))
    lost = sum(theirs and not ours for ours, theirs in zip(model, reference, strict=True))
    number = len(model)
    if number == 0:
        raise ValueError("a difference of nothing")
    value = (gained - lost) / number
    up, down = (gained + 1) / (number + 2), (lost + 1) / (number + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (number + 2))
    middle = up - down
    return Mean(value, max(-1.0, middle - half), min(1.0, middle + half))


def paired_mean_difference(model: Sequence[float], reference: Sequence[float]) -> Mean:
    """Mean of the items' differences, with its normal interval; equal to the value for a single item.

    Args:
        model, reference: one number for each item, in the same order.

    Raises:
        ValueError: different lengths, or no items.
    """
    differences = [ours - theirs for ours, theirs in zip(model, reference, strict=True)]
    number = len(differences)
    if number == 0:
        raise ValueError("a difference of nothing")
    value = math.fsum(differences) / number
    if number == 1:
        return Mean(value, value, value)
    variance = math.fsum((each - value) ** 2 for each in differences) / (number - 1)
    half = Z * math.sqrt(variance / number)
    return Mean(value, value - half, value + half)
