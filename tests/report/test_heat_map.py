"""The map of experts."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from moesaic.report.expert_values import ExpertValues, expert_values
from moesaic.report.heat_map import cell_size, classes, heat_map, legend
from moesaic.report.sources import Material
from tests.report.made_up import LAYERS, run


def table(key: str, **more: object) -> ExpertValues:
    """A table of a made-up run."""
    return next(each for each in expert_values(run("one", **more), Material(())) if each.key == key)


def cells(made: ElementTree.Element) -> dict[tuple[int, int], str]:
    """Layer and expert -> class, found in the drawing: an independent reading of the paths."""
    left, top, wide, high = (int(made.get(f"data-{name}")) for name in ("left", "top", "wide", "high"))
    found = {}
    for path in made.iter("path"):
        for x, y in re.findall(r"M(\d+) (\d+)", path.get("d")):
            found[(int(y) - top) // high, (int(x) - left) // wide] = path.get("class")
    return found


@pytest.mark.parametrize("key", ["bits", "max_var"])
def test_every_cell_has_its_colour(key: str) -> None:
    """Each expert of each layer has one cell, in the colour of its own value."""
    made = table(key)
    found = cells(heat_map(made, "words"))
    wanted = {(row, column): name for row, names in enumerate(classes(made)) for column, name in enumerate(names)}
    assert found == wanted
    assert len(found) == 12


def test_colours_follow_values() -> None:
    """Widths have colours of their own; on a scale a larger value never has a smaller step."""
    assert classes(table("bits"))[0] == ["w1", "w2", "w3", "w4"]
    values = [0.0, 0.2, 0.6, 1.0]
    scale = classes(table("max_var", observed={"max_var": dict.fromkeys(LAYERS, values)}))[0]
    assert (scale[0], scale[-1]) == ("s0", "s6")
    assert scale == sorted(scale)


def test_legends_count_and_bound() -> None:
    """The legend of widths counts experts; that of a scale gives the interval of each colour in use."""
    assert legend(table("bits")) == tuple(
        (f"w{w}", f"{w} {'bit' if w == 1 else 'bits'}: 3 experts") for w in (1, 2, 3, 4)
    )
    shown = legend(table("max_var", observed={"max_var": {key: [0.0, 0.0, 0.0, 7.0] for key in LAYERS}}))
    assert shown == (("s0", "0 to 1"), ("s6", "6 to 7"))


def test_large_and_uneven_models_fit() -> None:
    """Hundreds of experts get small cells that can still be hit; layers may differ in their number."""
    many = run("one", " ".join(["2"] * 256), layers=[f"l.{i}" for i in range(60)])
    big = expert_values(many, Material(()))[0]
    assert min(cell_size(big)) >= 6
    assert len(cells(heat_map(big, "words"))) == 256 * 60
    uneven = run("one")
    uneven.manifest["plan"]["layers"][LAYERS[1]] = "3"
    made = expert_values(uneven, Material(()))[0]
    assert len(cells(heat_map(made, "words"))) == 9


def test_digits_where_they_fit() -> None:
    """Large cells say their width in digits too, so that colour is not the only sign."""
    assert [each.text for each in heat_map(table("bits"), "words").iter("text") if "cell" in each.get("class")] == list(
        "1234" * 3
    )
    many = expert_values(run("one", " ".join(["2"] * 256)), Material(()))[0]
    assert not [each for each in heat_map(many, "words").iter("text") if "cell" in each.get("class")]
