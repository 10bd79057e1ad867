"""Figures as files."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from moesaic.report.figure import Figure, write_figures
from moesaic.report.svg import drawing


def test_every_figure_is_a_file(tmp_path: Path) -> None:
    """Each figure is a well-formed file under its own name, in a folder that is made."""
    figures = [Figure(name, "Title", drawing(4, 3, label="words"), "caption") for name in ("a", "b.1")]
    assert write_figures(figures, tmp_path / "new" / "figures") == ["a.svg", "b.1.svg"]
    for name in ("a.svg", "b.1.svg"):
        assert ElementTree.parse(tmp_path / "new" / "figures" / name).getroot().get("viewBox") == "0 0 4 3"
