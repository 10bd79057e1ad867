"""The page as text; `test_browser.py` opens it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from moesaic.report.page import LARGEST_PAGE, build
from moesaic.report.sources import Material, Run
from tests.report.made_up import manifest, measurement, run, three_runs

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(1)>&"\''


class Tags(HTMLParser):
    """Counts tags and keeps what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag begins."""
        self.seen.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "action", "srcset") and not (value or "").startswith(("#", "data:")):
                self.loads.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.handlers.append(name)


def parsed(html: str) -> Tags:
    """The tags of a page."""
    tags = Tags()
    tags.feed(html)
    return tags


def data_of(html: str) -> dict:
    """The data in a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_nothing_is_loaded() -> None:
    """The page refers to nothing outside itself, and forbids it."""
    html = build(three_runs()).html
    assert parsed(html).loads == []
    assert "default-src 'none'" in html
    assert "url(" not in html
    assert "@import" not in html


def test_names_from_files_stay_text() -> None:
    """Markup in names of folders, layers, methods, options, texts and machines is shown and not obeyed."""
    made = manifest(layers=[f"{EVIL}.{i}" for i in range(2)])
    made["plan"]["method"] = made["source"]["name"] = made["source"]["model_type"] = EVIL
    made["options"] = made["versions"] = {EVIL: EVIL}
    measured = (
        measurement("perplexity", 3.0, 2.0, 4.0, text=EVIL, machine=EVIL),
        measurement("decode_tokens_per_second", 3.0, unit=EVIL, machine=EVIL, backend=EVIL),
        measurement("layer_routing_same_set", 0.5, layer=EVIL),
    )
    html = build(Material((Run(EVIL, EVIL, made, measured),))).html
    tags = parsed(html)
    assert (tags.seen.count("script"), tags.seen.count("img"), tags.handlers) == (2, 0, [])
    assert data_of(html)["runs"][0]["label"] == EVIL


def test_the_same_input_gives_the_same_page() -> None:
    """A page has no dates and no paths in it that change by themselves."""
    assert build(three_runs()).html == build(three_runs()).html


def test_tables_that_runs_share_are_in_the_page_once() -> None:
    """Router norms of one model do not come again with every run of it."""
    found = data_of(build(three_runs()).html)
    keys = [table["key"] for table in found["tables"]]
    assert keys.count("max_var") == 1
    assert keys.count("bits") == 3
    assert [len(each["tables"]) for each in found["runs"]] == [3, 3, 3]


def test_a_run_with_nothing_measured() -> None:
    """Every part that is missing is named with a command; no figure is empty."""
    made = build(Material((run("bare"),)))
    assert {each.title for each in made.missing} == {
        "Router norm against frequency", "Size against perplexity", "Size against KL divergence",
        "Routing agreement per layer", "Speed and memory",
    }  # fmt: skip
    assert all(each.command in made.html.replace("&#39;", "'") for each in made.missing)
    assert len(made.figures) == 2


def test_a_model_known_from_records_only() -> None:
    """Full precision has a row in the table and no panel."""
    material = three_runs()
    full = Run(
        "full",
        "",
        {},
        (measurement("total_bytes", 9e6), measurement("perplexity", 25.0), measurement("code_bits", 16.0)),
    )
    html = build(Material((*material.runs, full))).html
    assert "known from records only" in html
    assert len(data_of(html)["runs"]) == 3


def test_large_models_stay_below_the_bound() -> None:
    """Three runs of 58 layers with 256 experts fit; what does not fit is left out and named, never the first run."""
    layers = [f"model.layers.{i}.mlp.experts" for i in range(58)]
    runs = tuple(run(name, " ".join(["1", "2", "3", "2"] * 64), layers=layers) for name in ("a", "b", "c"))
    made = build(Material(runs))
    assert len(made.html.encode()) <= LARGEST_PAGE
    assert made.left_out == ()
    small = build(Material(runs), largest=len(made.html) // 2)
    assert small.left_out == ("b", "c")
    assert "left out" in small.html
    assert [len(each["tables"]) > 0 for each in data_of(small.html)["runs"]] == [True, False, False]
