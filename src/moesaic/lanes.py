"""Tasks side by side, each on one thread, so that a result does not depend on how many threads there are.

A matrix product or a factorisation that several threads share is cut another way for another number of threads, and
rounds otherwise then. Here the caller cuts the work, always in the same way, and a lane does one piece by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_ONE_AT_A_TIME = threading.Lock()  # the number of threads is a setting of the whole process


class Lanes(Protocol):
    """Calls a function on many items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results in the order of the items; the first error is raised."""
        ...


@contextmanager
def lanes() -> Iterator[Lanes]:
    """As many lanes as torch has threads; inside, torch has one thread, afterwards as many as before.

    A second caller waits until the first is through. Lanes in lanes would wait for ever.
    """
    with _ONE_AT_A_TIME:
        count = torch.get_num_threads()
        if count == 1:
            yield _in_a_row
            return
        torch.set_num_threads(1)  # MKL's number is one for all threads, so it has to stay until the end
        try:
            with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:

                def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
                    return list(pool.map(function, items))

                yield side_by_side
        finally:
            torch.set_num_threads(count)


def _in_a_row(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    return [function(item) for item in items]
