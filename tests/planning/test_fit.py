"""Where a model fits."""

from __future__ import annotations

from moesaic.planning.fit import ACCELERATORS_GB, RunningCost, fit_table, needed


def test_how_many_are_needed() -> None:
    """A full one is enough, a byte more needs a second."""
    assert [needed(size, 10) for size in (1, 10, 11, 20, 21)] == [1, 1, 2, 2, 3]


def test_this_machine_comes_first_and_all_usual_sizes_follow() -> None:
    """Free memory of this machine, then the accelerators by size; a memory of nothing is left out."""
    found = fit_table(93 * 10**9, 20 * 10**9, [("here", 25 * 10**9), ("none", 0)])
    assert [each.place for each in found] == ["here", *(f"{size} GB" for size in ACCELERATORS_GB)]
    assert {each.place: (each.before, each.after) for each in found if each.place in ("here", "24 GB", "80 GB")} == {
        "here": (4, 1),
        "24 GB": (4, 1),
        "80 GB": (2, 1),
    }


def test_running_costs() -> None:
    """The price of one hour times how many are needed."""
    cost = RunningCost(80, 2.5, 4, 1)
    assert (cost.before_hour, cost.after_hour) == (10, 2.5)
