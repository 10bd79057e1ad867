"""A plan as lines of digits."""

from __future__ import annotations

import pytest

from moesaic.cli.bit_map import bit_map, legend, symbol


def plain(layers: dict[str, dict[str, list[int]]], width: int = 80) -> list[str]:
    """The map without its colours."""
    return [line.plain.rstrip() for line in bit_map(layers, width=width)]


def both(*bits: int) -> dict[str, list[int]]:
    """A layer whose experts have one width each."""
    return {"gate_up": list(bits), "down": list(bits)}


def test_a_line_a_layer() -> None:
    """Layers are named by their number, experts are digits, and F is what was kept."""
    layers = {f"model.layers.{number}.mlp.experts": both(3, 2, 1, 16) for number in (0, 10)}
    assert plain(layers) == ["  layer 0   321F", "  layer 10  321F"]


def test_numbers_that_do_not_tell_layers_apart() -> None:
    """Encoder and decoder both have a layer 1, so that the whole names are shown."""
    layers = {f"{stack}.block.1.mlp.experts": both(1) for stack in ("encoder", "decoder")}
    assert plain(layers) == ["  encoder.block.1.mlp.experts  1", "  decoder.block.1.mlp.experts  1"]


def test_two_entries_have_two_lines() -> None:
    """Where the entries of an expert differ both are shown, for all layers alike."""
    layers = {"l.0.e": {"gate_up": [1, 2], "down": [2, 2]}, "l.1.e": both(3, 3)}
    shown = plain(layers)
    assert [line.split()[-2:] for line in shown] == [
        ["gate_up", "12"],
        ["down", "22"],
        ["gate_up", "33"],
        ["down", "33"],
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Layers of many experts go over several lines, and none of the digits is lost."""
    shown = plain({f"layers.{n}.e": both(*([1, 2, 3, 4] * 64)) for n in range(2)}, width)
    assert max(map(len, shown)) <= width
    digits = "".join(line.replace("layer 0", "").replace("layer 1", "").strip() for line in shown)
    assert digits == "1234" * 128


def test_the_legend_counts() -> None:
    """An expert with two widths counts half for each."""
    lines = [line.plain for line in legend({"l.0.e": {"gate_up": [1, 2, 16], "down": [2, 2, 16]}})]
    assert lines == ["  1  1 bit: 0.5 experts", "  2  2 bits: 1.5 experts", "  F  kept as they were: 1 experts"]
    assert symbol(8) == "8"
