"""Routing agreement per layer."""

from __future__ import annotations

from moesaic.report.agreement import agreement, by_layer
from moesaic.report.figure import Figure, Missing
from moesaic.report.sources import Material
from tests.report.made_up import LAYERS, measurement, run, three_runs


def test_a_line_a_run_and_a_row_a_layer() -> None:
    """Every run has a line through all layers; the table has the same shares."""
    made = agreement(three_runs(), {"low": 1, "mixed": 2, "high": 3}, "command")
    assert isinstance(made, Figure)
    lines = [each for each in made.drawing.iter("path") if "line" in each.get("class")]
    assert [line.get("d").count("L") for line in lines] == [2, 2, 2]
    assert made.rows[0] == (LAYERS[0], "90.0 %", "90.0 %", "90.0 %")
    assert len(made.rows) == len(LAYERS)


def test_more_samples_win() -> None:
    """Of two measurements of a layer the one with more tokens is shown."""
    few = measurement("layer_routing_same_set", 0.1, layer="a", n=10)
    many = measurement("layer_routing_same_set", 0.9, layer="a", n=1000)
    assert by_layer((few, many))["a"].value == by_layer((many, few))["a"].value == 0.9


def test_nothing_measured() -> None:
    """Without routing records there is no empty figure."""
    assert isinstance(agreement(Material((run("a"),)), {"a": 1}, "command"), Missing)
