"""The page: figures, tables and data put into one HTML file that needs nothing else.

Style and script are in the file, and a content security policy in it forbids everything that comes from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from moesaic.report.agreement import agreement
from moesaic.report.bars import bars
from moesaic.report.comparison import compared, folder_bytes, packed_runs, setting_text, value_text
from moesaic.report.expert_values import ExpertValues, short_names
from moesaic.report.figure import Figure, Missing
from moesaic.report.heat_map import legend
from moesaic.report.numbers import number_text, size_text
from moesaic.report.panels import Panel, evaluate_command, panel
from moesaic.report.sources import Material, Run
from moesaic.report.trade_off import trade_off
from moesaic.stats import RARE_TOKENS

LARGEST_PAGE = 3_000_000  # bytes
_COLUMNS = (  # of the table of runs: measure, heading
    ("perplexity", "perplexity"),
    ("kl", "KL, nats a token"),
    ("top1_agreement", "same first choice"),
    ("decode_tokens_per_second", "decoding, tokens/s"),
)


@dataclass(frozen=True)
class Report:
    """A page that is ready to be written.

    Attributes:
        html: the whole file.
        figures: all figures in it.
        missing: what it says was not measured.
        left_out: labels of runs whose experts are not shown, for the size of the page.
    """

    html: str
    figures: tuple[Figure, ...]
    missing: tuple[Missing, ...]
    left_out: tuple[str, ...]


def build(material: Material, *, largest: int = LARGEST_PAGE) -> Report:
    """Make the page.

    Args:
        material: what to show.
        largest: size of the page in bytes. Where it would be larger, the experts of the last runs are left out, and the
            page says so; those of the first run are always shown.
    """
    runs = packed_runs(material)
    for shown in range(len(runs), 0, -1):
        report = _build(material, runs, shown)
        if len(report.html.encode()) <= largest:
            break
    return report


def _build(material: Material, runs: list[Run], shown: int) -> Report:
    others = [run for run in material.runs if not run.manifest]
    numbers = {run.label: place + 1 for place, run in enumerate([*runs, *others])}
    panels = [panel(run, numbers[run.label], material, experts=place < shown) for place, run in enumerate(runs)]
    command = evaluate_command(runs[0])
    quality = [trade_off(material, name, numbers, command) for name in ("perplexity", "kl")]
    routing = agreement(material, numbers, command)
    speed: list[Figure | Missing] = [*bars(material, numbers)]
    if not speed:
        speed = [Missing("Speed and memory", "Neither speed nor memory was measured.", command)]
    html = _render(
        title=_title(runs),
        panels=panels,
        quality=quality,
        routing=routing,
        speed=speed,
        methods=_methods(material, numbers),
        comparing=_setting(material),
        data=_data(panels),
    )
    maps = [each.map for each in panels if each.map]
    parts = [*maps, *(figure for each in panels for figure in each.scatters), *quality, routing, *speed]
    return Report(
        html=html,
        figures=tuple(each for each in parts if isinstance(each, Figure)),
        missing=tuple(each for each in parts if isinstance(each, Missing)),
        left_out=tuple(each.run.label for each in panels if each.left_out),
    )


def _title(runs: list[Run]) -> str:
    sources = list(dict.fromkeys(str(run.manifest.get("source", {}).get("name", "a model")) for run in runs))
    what = ", ".join(sources[:3]) + (" and others" if len(sources) > 3 else "")
    return f"{what}: {runs[0].label}" if len(runs) == 1 else f"{what}: {len(runs)} runs compared"


def _setting(material: Material) -> str:
    """The setting under which quality is compared, "" where nothing was measured."""
    found = compared("kl", material.runs) or compared("perplexity", material.runs)
    return setting_text(found.setting) if found else ""


def _methods(material: Material, numbers: dict[str, int]) -> dict[str, Any]:
    """The table of runs, by method, smallest first; columns that nobody has are left out."""
    found = [(title, compared(name, material.runs)) for name, title in _COLUMNS]
    columns = [(title, each.values) for title, each in found if each is not None]
    groups: dict[str, list[tuple[str, ...]]] = {}
    for run in sorted(material.runs, key=lambda each: folder_bytes(each) or 0):
        method = run.manifest["plan"].get("method", "by hand") if run.manifest else "known from records only"
        cells = [value_text(values.get(run.label)) for _, values in columns]
        groups.setdefault(str(method), []).append((str(numbers[run.label]), run.label, *_sizes(run), *cells))
    head = ("run", "code bits", "stored bits", "experts", "folder", *(title for title, _ in columns))
    return {"head": head, "groups": groups}


def _sizes(run: Run) -> tuple[str, ...]:
    """Code bits, stored bits, bytes of the experts, bytes of the folder."""
    found = []
    for name in ("code_bits", "stored_bpw", "expert_bytes"):
        measured = run.named(name)
        value = run.manifest.get(name, measured[-1].value if measured else None)
        found.append("–" if value is None else size_text(value) if name == "expert_bytes" else number_text(value))
    size = folder_bytes(run)
    return (*found, "–" if size is None else size_text(size))


def _data(panels: list[Panel]) -> dict[str, Any]:
    """What the script needs: tables of numbers, each once however many runs share it, and which run has which."""
    pool: list[dict[str, Any]] = []
    places: dict[tuple[Any, ...], int] = {}
    runs = []
    for each in panels:
        for table in each.values:
            place = places.setdefault(_identity(table), len(pool))
            if place == len(pool):
                pool.append(_packed(table))
        names = short_names(list(each.values[0].layers)) if each.values else []
        tables = [places[_identity(table)] for table in each.values]
        runs.append({"number": each.number, "label": each.run.label, "layers": names, "tables": tables})
    return {"tables": pool, "runs": runs}


def _identity(table: ExpertValues) -> tuple[Any, ...]:
    return table.key, tuple(table.layers.items())


def _packed(table: ExpertValues) -> dict[str, Any]:
    rows = [[int(value) if value.is_integer() else value for value in row] for row in table.layers.values()]
    return {
        "key": table.key,
        "name": table.name,
        "unit": table.unit,
        "group": table.group,
        "about": table.about,
        "widths": table.are_widths,
        "edges": table.edges(),
        "legend": legend(table),
        "rows": rows,
    }


def _render(*, data: dict[str, Any], **parts: Any) -> str:
    assets = resources.files("moesaic.report") / "assets"
    style, script, source = (
        (assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html.j2")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    numbers = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return environment.from_string(source).render(
        **parts,
        style=Markup(style),  # our own files
        script=Markup(script),
        script_digest=digest,
        data=Markup(numbers.replace("<", "\\u003c")),  # no tag can begin or end in it
        rare_tokens=RARE_TOKENS,
        missing=lambda part: isinstance(part, Missing),
        groups=_switch_groups,
    )


def _switch_groups(values: tuple[ExpertValues, ...]) -> dict[str, list[tuple[int, ExpertValues]]]:
    """Heading -> place and table, for the switch of the map."""
    found: dict[str, list[tuple[int, ExpertValues]]] = {}
    for place, table in enumerate(values):
        found.setdefault(table.group, []).append((place, table))
    return found
