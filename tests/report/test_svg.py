"""Building SVG."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from moesaic.report.svg import RUN_COLOURS, STEP_COLOURS, WIDTH_COLOURS, drawing, file_text, markup, node

ASSETS = Path(__file__).parents[2] / "src" / "moesaic" / "report" / "assets"


def test_text_and_attributes_are_escaped() -> None:
    """Names from files cannot become markup."""
    made = str(markup(node("text", "<script>", data_tip='"><b>')))
    assert made == '<text data-tip="&quot;&gt;&lt;b&gt;">&lt;script&gt;</text>'


def test_a_file_stands_alone() -> None:
    """A file has the name space, a title, and the colours of every class, without variables that few programs know."""
    text = file_text(drawing(10, 20, node("path", class_="w3", d="M0 0"), label="words"), "A <title>")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{*}title").text == "A <title>"
    assert root.get("aria-label") == "words"
    assert WIDTH_COLOURS[3] in text
    assert "var(" not in text


def test_page_and_files_have_the_same_light_colours() -> None:
    """The style sheet of the page says the light colours again; they have to be those of the files."""
    named = {f"w{width}": colour for width, colour in WIDTH_COLOURS.items()}
    named |= {f"s{step}": colour for step, colour in enumerate(STEP_COLOURS)}
    named |= {f"r{place}": colour for place, colour in enumerate(RUN_COLOURS)}
    style = (ASSETS / "page.css").read_text()
    assert dict(re.findall(r"--([wsr]\d+): light-dark\((#\w+),", style)) == named
