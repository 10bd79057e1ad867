"""Size against quality."""

from __future__ import annotations

import pytest

from moesaic.report.figure import Figure, Missing
from moesaic.report.sources import Material
from moesaic.report.trade_off import trade_off
from tests.report.made_up import run, three_runs

NUMBERS = {"low": 1, "mixed": 2, "high": 3}


def parts(made: Figure, name: str) -> list[object]:
    """The elements of a class."""
    return [each for each in made.drawing.iter() if name in (each.get("class") or "").split()]


@pytest.mark.parametrize(
    ("name", "title"), [("perplexity", "Size against perplexity"), ("kl", "Size against KL divergence")]
)
def test_runs_whiskers_and_the_uniform_curve(name: str, title: str) -> None:
    """Every run has a mark with its interval; the uniform ones are joined; the table has the same numbers."""
    made = trade_off(three_runs(), name, NUMBERS, "command")
    assert isinstance(made, Figure)
    assert made.title == title
    assert len(parts(made, "point")) == len(parts(made, "whisker")) == len(made.rows) == 3
    (line,) = parts(made, "uniform")
    assert line.get("d").count("L") == 1  # two uniform runs
    assert len(parts(made, "reference")) == (1 if name == "perplexity" else 0)
    assert "(" in made.rows[0][2]


def test_nothing_measured() -> None:
    """Without measurements there is no empty figure, but the command that would make one."""
    made = trade_off(Material((run("a"),)), "kl", {"a": 1}, "the command")
    assert isinstance(made, Missing)
    assert made.command == "the command"


def test_runs_that_were_not_measured_are_counted() -> None:
    """A run that is missing from the figure is not missing from its words."""
    material = three_runs()
    made = trade_off(Material((*material.runs, run("other"))), "kl", {**NUMBERS, "other": 4}, "command")
    assert isinstance(made, Figure)
    assert "1 of 4 runs" in made.caption
