"""Building SVG: elements with escaped text, as markup for the page or as a file of its own.

Colours are classes. The page's style sheet gives them light and dark values; a file carries the light ones.
"""

from __future__ import annotations

from xml.etree import ElementTree

from markupsafe import Markup

Element = ElementTree.Element
NAMESPACE = "http://www.w3.org/2000/svg"

WIDTH_COLOURS = {1: "#d4572a", 2: "#d9a03a", 3: "#35a08f", 4: "#2779b5", 8: "#4a4fae", 16: "#2b2352"}
STEP_COLOURS = ("#e4eff0", "#bfdcdd", "#93c4c8", "#63a7b0", "#3a8896", "#1d6778", "#0a4555")
RUN_COLOURS = ("#1f6f8b", "#c8553d", "#5b7f2f", "#7a4fa3", "#a06f08", "#b23a75", "#3f5bb5", "#5f6a72")
_FILE_STYLE = """
text { font: 12px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #33393d; }
.title { font-weight: 600; } .faint { fill: #6a7378; } .cell { fill: #fff; font-size: 11px; } .on2 { fill: #1f2629; }
.grid { stroke: #dfe3e5; } .axis { stroke: #8a9499; } .plate { fill: #fff; }
.line { fill: none; stroke-width: 2; } .dots { fill: none; stroke-width: 7; stroke-linecap: round; }
.whisker { stroke-width: 1.5; fill: none; } .reference { stroke: #33393d; stroke-dasharray: 5 4; fill: none; }
.mark { stroke: #fff; stroke-width: 1.5; } .mark-text { fill: #fff; font-size: 10px; font-weight: 600; }
.halo { paint-order: stroke; stroke: #fff; stroke-width: 4; } .cursor, .ring { display: none; }
"""


def node(tag: str, *children: Element | str, **attributes: object) -> Element:
    """An element. `class_` and `font_size` become `class` and `font-size`; numbers get at most 2 places."""
    named = {key.rstrip("_").replace("_", "-"): _written(value) for key, value in attributes.items()}
    made = ElementTree.Element(tag, named)
    for child in children:
        if isinstance(child, str):
            made.text = (made.text or "") + child
        else:
            made.append(child)
    return made


def _written(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def drawing(width: float, height: float, *children: Element, label: str, **attributes: object) -> Element:
    """The outermost element: an image of that size in pixels with a text for those who cannot see it."""
    return node(
        "svg", *children, viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, role="img",
        aria_label=label, **attributes,
    )  # fmt: skip


def markup(element: Element) -> Markup:
    """The element as part of an HTML page."""
    return Markup(ElementTree.tostring(element, encoding="unicode"))  # ElementTree escapes


def file_text(element: Element, title: str) -> str:
    """The element as an SVG file, with a title and colours of its own."""
    copy = ElementTree.fromstring(ElementTree.tostring(element))
    copy.set("xmlns", NAMESPACE)
    copy.set("class", "figure")
    style = ElementTree.Element("style")
    style.text = _FILE_STYLE + "".join(_colour_rules())
    heading = ElementTree.Element("title")
    heading.text = title
    plate = node("rect", class_="plate", width="100%", height="100%")
    for place, part in enumerate((heading, style, plate)):
        copy.insert(place, part)
    return ElementTree.tostring(copy, encoding="unicode") + "\n"


def _colour_rules() -> list[str]:
    named = {f"w{width}": colour for width, colour in WIDTH_COLOURS.items()}
    named |= {f"s{step}": colour for step, colour in enumerate(STEP_COLOURS)}
    named |= {f"r{place}": colour for place, colour in enumerate(RUN_COLOURS)}
    return [
        f".{name} {{ fill: {colour}; }} "
        f".{name}.line, .{name}.dots, .{name}.whisker {{ fill: none; stroke: {colour}; }}\n"
        for name, colour in named.items()
    ]
