"""What the page shows of one run."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer.main

from moesaic.cli import app
from moesaic.report.figure import Figure, Missing
from moesaic.report.panels import evaluate_command, panel, slug
from moesaic.report.sources import Material, read
from tests.report.made_up import LAYERS, manifest, run, three_runs, write_folder, write_statistics


def test_cards_have_values_or_say_how_to_get_them() -> None:
    """A measured run shows figures with their intervals; one that is not says what would measure it."""
    material = three_runs()
    cards = {card.title: card for card in panel(material.runs[0], 1, material).cards}
    assert cards["Perplexity"].value == "30"
    assert "29 to 32" in cards["Perplexity"].note
    assert "full precision 25" in cards["Perplexity"].note
    assert cards["Peak memory"].value == "500.0 MB"
    bare = {card.title: card for card in panel(run("a b"), 1, Material((run("a b"),))).cards}
    assert not bare["KL divergence"].measured
    assert "moesaic evaluate 'a b'" in bare["KL divergence"].note
    assert bare["Code bits"].measured


def test_the_command_it_names_is_one() -> None:
    """The command that the page gives has a name and options that the command line knows."""
    words = shlex.split(evaluate_command(run("a b")))
    assert words[0] == "moesaic"
    known = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    options = {name for option in known.params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_scatters_or_what_is_missing(tmp_path: Path) -> None:
    """Router norm against MaxVar always; against frequency when there are statistics, else the words for it."""
    folder = write_folder(tmp_path / "one", manifest())
    material = read([folder])
    assert [type(each) for each in panel(material.runs[0], 1, material).scatters] == [Figure, Missing]
    file = write_statistics(tmp_path / "s.safetensors", {key: [0, 31, 32, 400] for key in LAYERS})
    material = read([folder], [file])
    made = panel(material.runs[0], 1, material)
    assert [type(each) for each in made.scatters] == [Figure, Figure]
    assert made.rare == tuple(f"Layer {layer}: 0 (0 tokens, 1 bit), 1 (31 tokens, 2 bits)" for layer in range(3))
    old = run("old", observed={})
    assert [type(each) for each in panel(old, 1, Material((old,))).scatters] == [Missing, Missing]


def test_a_panel_without_experts() -> None:
    """Where experts are left out, cards and options stay."""
    made = panel(run("a"), 1, Material((run("a"),)), experts=False)
    assert (made.map, made.values, made.scatters, made.left_out) == (None, (), (), True)
    assert made.cards
    assert dict(made.options) == {"bits": "2.5", "levels": "1, 2", "symmetric": "yes", "plan": "–"}


def test_slug() -> None:
    """Any label becomes a part of a file's name."""
    assert [slug(text) for text in ("a/b 2.5", "../x", "ä", "")] == ["a-b-2.5", "x", "run", "run"]
