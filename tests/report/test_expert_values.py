"""Everything known of every expert, as tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesaic.report.expert_values import STEPS, expert_values, short_names
from moesaic.report.sources import Material, Run, read
from tests.report.made_up import LAYERS, manifest, run, write_folder, write_statistics

Layers = dict[str, list[float]]


def tables(made: Run, material: Material | None = None) -> dict[str, Layers]:
    """Key -> layer -> values."""
    found = expert_values(made, material or Material((made,)))
    return {each.key: {layer: list(row) for layer, row in each.layers.items()} for each in found}


def test_bits_come_first_and_apart_where_they_differ() -> None:
    """One table of bits; two where gate/up and down have widths of their own."""
    assert next(iter(tables(run("one")).items())) == ("bits", {key: [1, 2, 3, 4] for key in LAYERS})
    mixed = manifest()
    mixed["plan"]["layers"][LAYERS[0]] = {"gate_up": "1 1 1 1", "down": "4 4 4 4"}
    found = tables(Run("one", "one", mixed))
    assert found["bits_gate_up"][LAYERS[0]] == [1] * 4
    assert found["bits_down"][LAYERS[0]] == [4] * 4


def test_the_change_is_final_minus_initial() -> None:
    """The change of the router norm keeps its sign."""
    noted = {
        "router_norm": {key: [1.0, 2.0, 3.0, 4.0] for key in LAYERS},
        "router_norm_initial": dict.fromkeys(LAYERS, [2.0] * 4),
    }
    found = tables(run("one", observed=noted))
    assert found["router_norm_change"][LAYERS[0]] == [-1, 0, 1, 2]
    assert "max_var" not in found


def test_scores_are_shown_in_the_sense_of_their_papers() -> None:
    """A score of router norm is minus the norm; the page shows the norm. Scores of other rules stay as they are."""
    parts = {
        "router_norm": {key: [-1.0, -2.0, -3.0, -4.0] for key in LAYERS},
        "max_var": dict.fromkeys(LAYERS, [5.0] * 4),
    }
    scores = {
        "format": "moesaic-scores/1",
        "rule": "router_norm+max_var",
        "layers": {key: [4, 3, 2, 1] for key in LAYERS},
    }
    scores["details"] = {"router_norm_form": "change (final minus initial norm)", "parts": parts}
    found = tables(run("one", observed={}, scores=scores))
    assert found["router_norm_change"][LAYERS[0]] == [1, 2, 3, 4]
    assert found["max_var"][LAYERS[2]] == [5] * 4
    assert found["score:router_norm+max_var"][LAYERS[0]] == [4, 3, 2, 1]


def test_statistics_and_costs(tmp_path: Path) -> None:
    """Counts become shares of the tokens, errors have a table a width, costs too."""
    errors = {layer: np.arange(16.0).reshape(4, 2, 2) for layer in LAYERS}
    file = write_statistics(
        tmp_path / "s.safetensors", {key: [0, 10, 500, 1000] for key in LAYERS}, weight_error=errors
    )
    rows = "[[3, 1], [3, 1], [3, 1], [4, 2]]"
    layers = ", ".join(f'"{layer}": {{"costs": {rows}}}' for layer in LAYERS)
    costs = tmp_path / "costs.json"
    costs.write_text(f'{{"format": "moesaic-costs/1", "rule": "r", "bits": [1, 2], "layers": {{{layers}}}}}')
    material = read([write_folder(tmp_path / "one", manifest())], [file, costs])
    found = tables(material.runs[0], material)
    assert found["frequency"][LAYERS[0]] == [0, 0.01, 0.5, 1]
    assert found["weight_error:2"][LAYERS[0]] == [1, 9, 17, 25]
    assert found["cost:r:2"][LAYERS[1]] == [1, 1, 1, 2]


def test_tables_of_another_model_are_left_out(tmp_path: Path) -> None:
    """Statistics whose layers or experts are not the run's do not get into its map."""
    file = write_statistics(tmp_path / "s.safetensors", {"other": [1, 2, 3, 4]})
    material = read([write_folder(tmp_path / "one", manifest())], [file])
    assert "frequency" not in tables(material.runs[0], material)


@pytest.mark.parametrize(
    ("values", "log"), [([1.0, 2.0, 3.0, 4.0], False), ([0.001, 0.01, 0.1, 1.0], True), ([2.0] * 4, False)]
)
def test_the_scale_of_colours(values: list[float], log: bool) -> None:
    """Edges ascend between the smallest and the largest value, by ratio where values span magnitudes."""
    noted = {"max_var": dict.fromkeys(LAYERS, values)}
    table = next(each for each in expert_values(run("one", observed=noted), Material(())) if each.key == "max_var")
    assert table.logarithmic is log
    edges = table.edges()
    assert len(edges) == STEPS - 1
    assert min(values) <= edges[0] <= edges[-1] <= max(values)
    assert edges == sorted(edges)


def test_short_names() -> None:
    """What all layers share is left out, and names stay different."""
    assert short_names(LAYERS) == ["0", "1", "2"]
    assert short_names(LAYERS[2:]) == ["2"]
    assert short_names(["encoder.block.1.mlp", "decoder.block.1.mlp"]) == ["encoder", "decoder"]
    assert short_names(["a.1", "a.b.1"]) == ["a.1", "a.b.1"]
    assert short_names(["experts"]) == ["experts"]
