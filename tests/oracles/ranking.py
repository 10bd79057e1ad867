"""Naive counts and reordering, written from the text of the router-norm paper and its released code's behaviour."""

from __future__ import annotations

from fractions import Fraction

# budget -> number of experts with 1, 2 and 3 bits, as the released code of arXiv 2604.06515 gives them
PUBLISHED_COUNTS = {
    8: {
        1.5: (4, 4, 0),
        1.625: (3, 5, 0),
        1.75: (4, 2, 2),
        1.875: (3, 3, 2),
        2.0: (2, 4, 2),
        2.125: (2, 3, 3),
        2.25: (2, 2, 4),
        2.375: (2, 1, 5),
        2.5: (2, 0, 6),
        2.625: (1, 1, 6),
        2.75: (1, 0, 7),
        2.875: (0, 1, 7),
    },
    64: {
        1.75: (32, 16, 16),
        1.875: (26, 20, 18),
        2.0: (21, 22, 21),
        2.125: (18, 20, 26),
        2.25: (16, 16, 32),
        2.375: (20, 0, 44),
        2.5: (16, 0, 48),
        2.75: (8, 0, 56),
    },
}


def three_level_counts(experts: int, bits: Fraction, levels: tuple[int, int, int]) -> tuple[int, int, int]:
    """Numbers of experts with the low, middle and high width: the two-level start, then trades one by one.

    Exact fractions, no floating point. `bits * experts` is rounded down, since a budget may not be exceeded.
    """
    low, middle, high = levels
    total = (bits * experts).__floor__()
    span = Fraction(high - low)
    widths = sorted([low] * experts)
    position = 0  # raise experts one step at a time: low to middle first, then middle to high
    while position < 2 * experts and sum(widths) + (high - middle) <= total:
        widths[position % experts] = middle if position < experts else high
        position += 1
    n_low, n_middle, n_high = widths.count(low), widths.count(middle), widths.count(high)
    promoted = 0
    while n_middle >= 2:
        first = bits > high - span / 3
        second = high - 2 * span / 3 <= bits <= high - span / 3 and n_middle - 2 >= promoted + 1
        if not (first or second):
            break
        n_low, n_middle, n_high, promoted = n_low + 1, n_middle - 2, n_high + 1, promoted + 1
    return n_low, n_middle, n_high


def reorder_once(order: list[int], spread: list[float], zeta: float) -> list[int]:
    """The released code: from the last of the original order to its start, insert before the first that is exceeded."""
    current = list(order)
    for expert in order[::-1]:
        ahead = [k for k, other in enumerate(current) if zeta * spread[other] < spread[expert]]
        if ahead and current.index(expert) > ahead[0]:
            current.remove(expert)
            current.insert(ahead[0], expert)
    return current


def reorder_until_stable(order: list[int], spread: list[float], zeta: float) -> list[int]:
    """The paper's text: lift the last expert that is at least `zeta` times one before it, again and again."""
    current = list(order)
    while True:
        wrong = [
            (i, k)
            for i, expert in enumerate(current)
            for k in range(i)
            if spread[expert] > 0 and spread[expert] >= zeta * spread[current[k]]
        ]
        if not wrong:
            return current
        last = max(i for i, _ in wrong)
        first = min(k for i, k in wrong if i == last)
        current.insert(first, current.pop(last))


def violations(order: list[int], spread: list[float], zeta: float) -> list[tuple[int, int]]:
    """Pairs (later expert, earlier expert) that the paper's rule would still swap."""
    return [
        (order[i], order[k])
        for i in range(len(order))
        for k in range(i)
        if spread[order[i]] > 0 and spread[order[i]] >= zeta * spread[order[k]]
    ]
