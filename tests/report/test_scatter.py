"""One dot an expert."""

from __future__ import annotations

import re

from moesaic.report.expert_values import expert_values
from moesaic.report.scatter import scatter
from moesaic.report.sources import Material
from tests.report.made_up import LAYERS, run


def test_every_expert_has_a_dot_of_its_colour() -> None:
    """Dots of one width are one path; a larger value is further right and higher up."""
    noted = {
        "router_norm": {key: [1.0, 2.0, 3.0, 4.0] for key in LAYERS},
        "max_var": {key: [0.01, 0.1, 1.0, 10.0] for key in LAYERS},
    }
    known = {each.key: each for each in expert_values(run("one", observed=noted), Material(()))}
    made = scatter(known["router_norm"], known["max_var"], known["bits"], "words")
    dots = {path.get("class"): re.findall(r"M([\d.]+) ([\d.]+)h0", path.get("d")) for path in made.iter("path")}
    assert {name: len(points) for name, points in dots.items()} == {f"dots w{w}": 3 for w in (1, 2, 3, 4)}
    places = [tuple(map(float, dots[f"dots w{w}"][0])) for w in (1, 2, 3, 4)]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)


def test_axes_have_names_and_say_when_they_are_logarithmic() -> None:
    """Titles name the values, with unit and scale."""
    noted = {
        "router_norm": {key: [1.0, 2.0, 3.0, 4.0] for key in LAYERS},
        "max_var": {key: [0.01, 1, 1, 10.0] for key in LAYERS},
    }
    known = {each.key: each for each in expert_values(run("one", observed=noted), Material(()))}
    texts = [each.text for each in scatter(known["router_norm"], known["max_var"], known["bits"], "words").iter("text")]
    assert {"Router norm", "MaxVar (log scale)"} <= set(texts)
