"""The page in a real Chromium: nothing fails, nothing is loaded, switches and keys do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesaic.report.page import LARGEST_PAGE, build
from moesaic.report.sources import Material, Run, read
from tests.report.browser import browser, open_page, requests_of
from tests.report.made_up import LAYERS, manifest, record, write_folder, write_statistics

HOW_MUCH_DARK = """
const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
return (r + g + b) / 765;
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Two runs with records, statistics and routing."""
    folder = tmp_path_factory.mktemp("material")
    runs = []
    for name, widths, kl in (("mixed", "1 2 3 4", 0.3), ("uniform", "3 3 3 3", 0.1)):
        measured = [record("kl", kl, model=name, interval=[0.9 * kl, 1.1 * kl])]
        measured += [record("perplexity", 9 + kl, model=name), record("decode_tokens_per_second", 5, model=name)]
        measured += [record("layer_routing_same_set", 0.9, model=name, layer=layer) for layer in LAYERS]
        runs.append(write_folder(folder / name, manifest(widths), measured))
    masses = {layer: np.array([0.5, 5.0, 50.0, 500.0]) for layer in LAYERS}
    counts = {layer: [1, 10, 100, 1000] for layer in LAYERS}
    return read(runs, [write_statistics(folder / "s.safetensors", counts, mass=masses)])


@pytest.fixture(scope="module")
def page(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of both runs."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(build(material).html, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    with browser() as driver:
        yield driver


def cells(driver: Any) -> dict[str, int]:
    """Colour class -> number of cells of the visible map."""
    script = """
    const part = document.querySelector('.experts:not([hidden])');
    return [...part.querySelectorAll('.cells path')].map(p => [p.getAttribute('class'), p.getAttribute('d').split('M').length - 1]);
    """  # noqa: E501
    return dict(driver.execute_script(script))


def choose(driver: Any, selector: str, text: str) -> None:
    """Choose an entry of a list that is visible, as a user does."""
    select = pytest.importorskip("selenium.webdriver.support.select").Select
    found = next(each for each in driver.find_elements("css selector", selector) if each.is_displayed())
    select(found).select_by_visible_text(text)


def inspected(driver: Any) -> dict[str, str]:
    """Name -> value of what the visible inspector shows, with its heading under `who`."""
    part = next(each for each in driver.find_elements("css selector", ".inspector") if each.is_displayed())
    names = [each.text for each in part.find_elements("css selector", "dt:not(.group)")]
    values = [each.text for each in part.find_elements("css selector", "dd")]
    return {"who": part.find_element("css selector", ".who").text, **dict(zip(names, values, strict=True))}


def test_the_page_loads_without_errors_and_requests(chromium: Any, page: Path) -> None:
    """The console stays empty and nothing is asked for over a network; the page is below its bound."""
    requests_of(chromium)
    open_page(chromium, page)
    assert chromium.title.endswith("moesaic report")
    assert chromium.get_log("browser") == []
    assert requests_of(chromium) == []
    assert page.stat().st_size < LARGEST_PAGE


def test_the_switch_changes_the_map(chromium: Any, page: Path) -> None:
    """Another value draws other colours, another legend and other numbers; bits come back as they were."""
    open_page(chromium, page)
    assert cells(chromium) == {"w1": 3, "w2": 3, "w3": 3, "w4": 3}
    choose(chromium, ".measure", "Routing weight")
    assert cells(chromium) == {"s0": 3, "s2": 3, "s4": 3, "s6": 3}  # magnitudes apart: a logarithmic scale
    assert "0.0005 to" in chromium.find_element("css selector", ".map-card .legend").text
    table = chromium.find_element("css selector", ".map-card .numbers")
    assert "0.0005 0.005 0.05 0.5" in table.get_attribute("textContent")
    assert "Routing weight" in table.get_attribute("textContent")
    choose(chromium, ".measure", "Bits")
    assert cells(chromium) == {"w1": 3, "w2": 3, "w3": 3, "w4": 3}


def test_another_run(chromium: Any, page: Path) -> None:
    """Choosing a run shows its map and its cards and hides the others."""
    open_page(chromium, page)
    choose(chromium, "#run", "2 uniform")
    assert cells(chromium) == {"w3": 12}
    shown = [
        each.text for each in chromium.find_elements("css selector", "#summary .lead strong") if each.is_displayed()
    ]
    assert shown == ["uniform"]


def test_pointing_at_a_cell_shows_its_expert(chromium: Any, page: Path, material: Material) -> None:
    """Under the pointer is the expert that the inspector names, with the values of the records."""
    open_page(chromium, page)
    actions = pytest.importorskip("selenium.webdriver.common.action_chains").ActionChains
    map_ = chromium.find_element("css selector", "svg.map")
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", map_)
    left, top, wide, high = (int(map_.get_attribute(f"data-{name}")) for name in ("left", "top", "wide", "high"))
    scale = map_.rect["width"] / float(map_.get_dom_attribute("viewBox").split()[2])
    x, y = (left + 2.5 * wide) * scale - map_.rect["width"] / 2, (top + 1.5 * high) * scale - map_.rect["height"] / 2
    actions(chromium).move_to_element_with_offset(map_, round(x), round(y)).perform()
    found = inspected(chromium)
    noted = material.runs[0].manifest["observed"]["max_var"][LAYERS[1]][2]
    assert found["who"] == "Layer 1, expert 2"
    assert found["Bits"] == "3"
    assert found["Routing frequency"] == "0.1"
    assert float(found["MaxVar"]) == float(f"{noted:.4g}")


def test_the_map_by_keyboard(chromium: Any, page: Path) -> None:
    """Tab reaches the map; arrow keys, Home and End go from expert to expert and stop at the edges."""
    open_page(chromium, page)
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    body = chromium.find_element("css selector", "body")
    for _ in range(30):
        body.send_keys(keys.TAB)
        if chromium.execute_script("return document.activeElement.classList.contains('map')"):
            break
    focused = chromium.switch_to.active_element
    assert focused.get_attribute("class").startswith("map")
    seen = []
    for key in (keys.ARROW_RIGHT, keys.ARROW_DOWN, keys.END, keys.ARROW_RIGHT, keys.ARROW_UP, keys.ARROW_UP, keys.HOME):
        focused.send_keys(key)
        seen.append(inspected(chromium)["who"].removeprefix("Layer ").replace(", expert", ""))
    assert seen == ["0 1", "1 1", "1 3", "1 3", "0 3", "0 3", "0 0"]


def test_the_dots_show_their_expert_too(chromium: Any, page: Path) -> None:
    """Arrow keys on a scatter plot go through the dots from left to right, name each and mark it in every figure."""
    open_page(chromium, page)
    plot = chromium.find_element("css selector", "svg.scatter")
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    places = []
    for _ in range(3):
        plot.send_keys(keys.ARROW_RIGHT)
        places.append(float(plot.find_element("css selector", ".ring").get_attribute("cx")))
        tip = chromium.find_element("css selector", "#tip").text
        assert inspected(chromium)["who"] in tip
        assert "MaxVar" in tip
    assert places == sorted(places)
    assert len(chromium.find_elements("css selector", ".experts:not([hidden]) .ring.on")) == 2


def test_marks_of_runs_speak_on_focus(chromium: Any, page: Path) -> None:
    """A run's mark can be focused, and says its name and numbers; Escape hides that."""
    open_page(chromium, page)
    chromium.execute_script("document.querySelector('#size-kl .point').focus()")
    tip = chromium.find_element("css selector", "#tip")
    assert tip.text.startswith("mixed: 0.3 (0.27 to 0.33)")
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    chromium.switch_to.active_element.send_keys(keys.ESCAPE)
    assert not tip.is_displayed()


def test_light_and_dark(chromium: Any, page: Path) -> None:
    """The page follows the system, and the button overrules it."""
    open_page(chromium, page)
    assert chromium.execute_script(HOW_MUCH_DARK) > 0.8
    open_page(chromium, page, dark=True)
    assert chromium.execute_script(HOW_MUCH_DARK) < 0.2
    button = chromium.find_element("css selector", "#theme")
    button.click()
    assert button.text == "Light"
    assert chromium.execute_script(HOW_MUCH_DARK) > 0.8


@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_page_wide_scrolling(chromium: Any, page: Path, width: int) -> None:
    """On a phone the page is as wide as the screen, and nothing sticks out of its card."""
    open_page(chromium, page, width=width)
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    script = """
    const wide = document.documentElement.clientWidth;
    return [...document.querySelectorAll('.card, select, button, figure svg.chart, p')]
      .filter(e => e.offsetParent !== null || e.ownerSVGElement === null)
      .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > wide + 0.5)
      .map(e => e.outerHTML.slice(0, 80));
    """
    assert chromium.execute_script(script) == []


def test_text_can_be_told_from_its_ground(chromium: Any, page: Path) -> None:
    """Plain and faint text have a contrast of 4.5 to 1 or more with cards and page, in light and in dark."""
    script = """
    const style = document.createElement('span');
    document.body.append(style);
    const luminance = (name) => {
      style.style.color = `var(--${name})`;
      const parts = getComputedStyle(style).color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255);
      const [r, g, b] = parts.map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const pairs = ['text', 'faint', 'accent'].flatMap(a => ['page', 'card'].map(b => [a + ' on ' + b, ratio(luminance(a), luminance(b))]));
    style.remove();
    return pairs.filter(([_, value]) => value < 4.5);
    """  # noqa: E501
    for dark in (False, True):
        open_page(chromium, page, dark=dark)
        assert chromium.execute_script(script) == []


def test_hostile_names_run_nothing(chromium: Any, tmp_path: Path) -> None:
    """Markup in names is shown as text, also where the script writes it."""
    evil = "<img src=x onerror=\"document.body.id='taken'\">"
    made = manifest(layers=[f"{evil}.{i}" for i in range(2)])
    made["plan"]["method"] = made["source"]["name"] = evil
    made["scores"] = {
        "format": "moesaic-scores/1",
        "rule": evil,
        "layers": {k: [1, 2, 3, 4] for k in made["plan"]["layers"]},
    }
    file = tmp_path / "evil.html"
    file.write_text(build(Material((Run(evil, evil, made),))).html, encoding="utf-8")
    open_page(chromium, file)
    choose(chromium, ".measure", f"Score: {evil}")
    chromium.find_element("css selector", "svg.map").send_keys("\ue014")  # arrow right
    assert chromium.find_elements("css selector", "#taken") == []
    assert chromium.find_elements("css selector", "img") == []
    assert chromium.get_log("browser") == []
