"""Where a model fits: this machine and accelerators by their memory, and what they cost to run."""

from __future__ import annotations

import math
from dataclasses import dataclass

ACCELERATORS_GB = (8, 12, 16, 24, 40, 48, 80, 96, 141)  # memory of the usual ones
GB = 10**9


@dataclass(frozen=True)
class Fit:
    """Whether a model fits into one kind of memory.

    Attributes:
        place: for people, such as `24 GB` or `this machine`.
        capacity: bytes.
        before, after: how many of them the model needs, before and after compression.
    """

    place: str
    capacity: int
    before: int
    after: int


def fit_table(before: int, after: int, here: list[tuple[str, int]]) -> list[Fit]:
    """How many of each it takes to hold that many bytes.

    Args:
        before, after: bytes of weights and key-value cache.
        here: the memories of this machine: name and free bytes.
    """
    places = [*here, *((f"{size} GB", size * GB) for size in ACCELERATORS_GB)]
    return [Fit(name, size, needed(before, size), needed(after, size)) for name, size in places if size > 0]


def needed(size: int, capacity: int) -> int:
    """How many memories of `capacity` bytes hold `size` bytes."""
    return math.ceil(size / capacity)


@dataclass(frozen=True)
class RunningCost:
    """What it costs to keep a model in accelerators, in the money of the price given.

    Attributes:
        accelerator_gb: memory of one of them.
        price: of one of them for an hour.
        before, after: how many are needed.
    """

    accelerator_gb: float
    price: float
    before: int
    after: int

    @property
    def before_hour(self) -> float:
        """An hour, before compression."""
        return self.before * self.price

    @property
    def after_hour(self) -> float:
        """An hour, after it."""
        return self.after * self.price
