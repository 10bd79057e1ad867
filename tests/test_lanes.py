"""Tasks side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from moesaic.lanes import lanes


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads is put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order_and_the_setting_comes_back(threads: None, count: int) -> None:
    """Torch has one thread inside, in the caller and in the lanes, and as many as before afterwards."""
    torch.set_num_threads(count)
    with lanes() as side_by_side:
        assert torch.get_num_threads() == 1
        assert side_by_side(lambda item: (item, torch.get_num_threads()), range(7)) == [(item, 1) for item in range(7)]
    assert torch.get_num_threads() == count


def test_an_error_comes_through(threads: None) -> None:
    """What a task raises reaches the caller, and the number of threads is put back all the same."""
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), lanes() as side_by_side:
        side_by_side(lambda item: 1 // item, [1, 0])
    assert torch.get_num_threads() == 2


def test_tasks_do_run_at_the_same_time(threads: None) -> None:
    """Two tasks that wait for each other finish: there are two lanes."""
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=30)
    with lanes() as side_by_side:
        assert sorted(side_by_side(lambda _: both.wait(), [0, 1])) == [0, 1]


def test_factorisations_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    """A Cholesky factorisation, which MKL cuts by the number of threads, is the same in lanes."""
    root = torch.randn(600, 600, generator=torch.Generator().manual_seed(0))
    square = root @ root.T + 100 * torch.eye(600)
    found = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        with lanes() as side_by_side:
            found += side_by_side(torch.linalg.cholesky, [square])
    assert all(torch.equal(each, found[0]) for each in found)
