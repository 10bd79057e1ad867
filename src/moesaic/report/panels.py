"""What the page shows of one run: summary, map of the experts, scatter plots, rare experts, how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.report.comparison import folder_bytes, value_text
from moesaic.report.expert_values import ExpertValues, expert_values, short_names
from moesaic.report.figure import Figure, Missing
from moesaic.report.heat_map import heat_map, legend
from moesaic.report.numbers import number_text, share_text, size_text
from moesaic.report.scatter import scatter
from moesaic.report.sources import Material, Measurement, Run, Statistics
from moesaic.stats import RARE_TOKENS

_AXES = ("router_norm_change", "router_norm")  # the first that is there is the horizontal axis


@dataclass(frozen=True)
class Card:
    """One figure of the summary; `value` is a dash, and `note` a command, where nothing was measured."""

    title: str
    value: str
    note: str
    measured: bool = True


@dataclass(frozen=True)
class Panel:
    """All that is shown of one run.

    Attributes:
        run: which one.
        number: its number on the page, from 1.
        method: how its widths came about.
        cards: the summary.
        values: what is known of every expert; empty where the panel was left out for its size.
        map: the map of bits.
        scatters: router norm against MaxVar, and against frequency.
        rare: sentences that name the rare experts; None where nothing was counted.
        options, versions, records: rows of tables.
        left_out: the panel's figures are left out, for the size of the page.
    """

    run: Run
    number: int
    method: str
    cards: tuple[Card, ...]
    values: tuple[ExpertValues, ...] = ()
    map: Figure | None = None
    scatters: tuple[Figure | Missing, ...] = ()
    rare: tuple[str, ...] | None = None
    options: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    records: tuple[tuple[str, ...], ...] = ()
    left_out: bool = False


def panel(run: Run, number: int, material: Material, *, experts: bool = True) -> Panel:
    """The panel of one run that has a folder.

    Args:
        run: which one.
        number: its number on the page.
        material: where statistics, costs and further scores are taken from.
        experts: with the figures that show every expert.
    """
    values = expert_values(run, material)
    known = {table.key: table for table in values}
    return Panel(
        run=run,
        number=number,
        method=str(run.manifest["plan"].get("method", "by hand")),
        cards=tuple(_cards(run)),
        values=tuple(values) if experts else (),
        map=_map(run, values[0]) if experts else None,
        scatters=tuple(_scatters(run, known)) if experts else (),
        rare=_rare(run, material, values[0]),
        options=tuple((name, _plain(value)) for name, value in (run.manifest.get("options") or {}).items()),
        versions=tuple((name, str(value)) for name, value in (run.manifest.get("versions") or {}).items()),
        records=tuple(_record_row(each) for each in run.measurements),
        left_out=not experts,
    )


def evaluate_command(run: Run) -> str:
    """The command that measures quality and speed, and saves the records where a report finds them."""
    folder = shlex.quote(run.folder or run.label)
    return f"moesaic evaluate {folder} --against MODEL --text HELDOUT.txt --save {folder}/records.json"


def _cards(run: Run) -> list[Card]:
    made = run.manifest
    asked = made["plan"].get("requested_bits")
    weights, held = made.get("expert_weights", 0), made.get("expert_bytes", 0)
    smaller = f"{2 * weights / held:.1f} times smaller than at 16 bits" if held else ""
    size = folder_bytes(run)
    cards = [
        Card("Code bits", number_text(made.get("code_bits", 0)), f"asked for {asked:g}" if asked else "a plan by hand"),
        Card(
            "Stored bits",
            number_text(made.get("stored_bpw", 0)),
            "a weight of the experts, scales and padding included",
        ),
        Card("Experts", size_text(held), smaller),
        Card("Whole folder", "–" if size is None else size_text(size), "all files"),
    ]
    return [*cards, *_quality_cards(run), *_speed_cards(run)]


def _quality_cards(run: Run) -> list[Card]:
    perplexity, kl = _last(run, "perplexity"), _last(run, "kl")
    reference, same = _last(run, "perplexity_reference"), _last(run, "top1_agreement")
    full = f"full precision {number_text(reference.value)}" if reference else "lower is better"
    top = f"; same first choice {share_text(same.value)}" if same else ""
    return [
        _measured_card("Perplexity", perplexity, full, run),
        _measured_card("KL divergence", kl, f"nats a token from full precision{top}", run),
    ]


def _speed_cards(run: Run) -> list[Card]:
    decode, peak = _last(run, "decode_tokens_per_second"), _last(run, "peak_memory_bytes")
    backend = f"tokens/s, {decode.conditions.get('backend', '?')} kernels" if decode else ""
    memory = Card("Peak memory", size_text(peak.value), "of the process") if peak else _missing_card("Peak memory", run)
    return [_measured_card("Decoding", decode, backend, run, digits=3), memory]


def _measured_card(title: str, measured: Measurement | None, note: str, run: Run, digits: int = 4) -> Card:
    if measured is None:
        return _missing_card(title, run)
    text = value_text(measured, digits)
    value, _, interval = text.partition(" (")
    return Card(title, value, f"95 %: {interval.rstrip(')')}; {note}" if interval else note)


def _missing_card(title: str, run: Run) -> Card:
    return Card(title, "not measured", evaluate_command(run), measured=False)


def _last(run: Run, name: str) -> Measurement | None:
    found = run.named(name)
    return found[-1] if found else None


def _map(run: Run, bits: ExpertValues) -> Figure:
    names = short_names(list(bits.layers))
    label = f"Map of {bits.name.lower()}: {len(names)} layers by up to {max(map(len, bits.layers.values()))} experts."
    return Figure(
        name=f"map-{slug(run.label)}",
        title="Map of the experts",
        drawing=heat_map(bits, label),
        caption="A row is a layer, a column an expert.",
        legend=legend(bits),
        head=("layer", "bits of experts 0, 1, 2, …"),
        rows=tuple((layer, " ".join(f"{value:g}" for value in row)) for layer, row in bits.layers.items()),
    )


def _scatters(run: Run, known: Mapping[str, ExpertValues]) -> list[Figure | Missing]:
    x = next((known[key] for key in _AXES if key in known), None)
    bits = next(iter(known.values()))
    made: list[Figure | Missing] = []
    for key, name, command in (
        ("max_var", "MaxVar", f"moesaic compress MODEL -o {shlex.quote(run.folder)} --overwrite …"),
        ("frequency", "frequency", "moesaic calibrate MODEL -o STATS.safetensors"),
    ):
        y = known.get(key)
        title = f"{x.name if x else 'Router norm'} against {name}"
        if x is None or y is None:
            what = "The router's norm" if x is None else "How often each expert is chosen" if y is None else ""
            what = "MaxVar" if key == "max_var" and x is not None else what
            made.append(Missing(title, f"{what} is not in the records of this run.", _where(command, key)))
        else:
            made.append(_scatter(run, x, y, bits, title))
    return made


def _where(command: str, key: str) -> str:
    return f"{command}, then moesaic report … --records STATS.safetensors" if key == "frequency" else command


def _scatter(run: Run, x: ExpertValues, y: ExpertValues, bits: ExpertValues, title: str) -> Figure:
    count = len(x.all())
    return Figure(
        name=f"{x.key}-{y.key}-{slug(run.label)}".replace("_", "-"),
        title=title,
        drawing=scatter(x, y, bits, f"{count} experts: {x.name} across, {y.name} upward, coloured by bits."),
        caption=f"A dot is an expert, its colour the {bits.name.lower()}. {x.about} {y.about}",
        legend=legend(bits),
        head=("bits", "experts", f"median {x.name}", f"median {y.name}"),
        rows=_medians(x, y, bits),
    )


def _medians(x: ExpertValues, y: ExpertValues, bits: ExpertValues) -> tuple[tuple[str, ...], ...]:
    rows = []
    triples = list(zip(bits.all(), x.all(), y.all(), strict=True))
    for width in sorted({each[0] for each in triples}):
        chosen = [each for each in triples if each[0] == width]
        medians = [number_text(_median([each[axis] for each in chosen])) for axis in (1, 2)]
        rows.append((f"{width:g}", str(len(chosen)), *medians))
    return tuple(rows)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _rare(run: Run, material: Material, bits: ExpertValues) -> tuple[str, ...] | None:
    """A sentence for each layer with experts that fewer than `RARE_TOKENS` tokens reached."""
    fitting = [each for each in material.statistics if _fits(each, run)]
    if not fitting:
        return None
    counts, said = fitting[0], []
    for layer, name in zip(bits.layers, short_names(list(bits.layers)), strict=True):
        numbers = counts.arrays[layer]["count"]
        rare = [place for place, count in enumerate(numbers) if count < RARE_TOKENS]
        if rare:
            named = (
                f"{place} ({int(numbers[place])} tokens, {_bits_text(bits.layers[layer][place])})" for place in rare
            )
            said.append(f"Layer {name}: {', '.join(named)}")
    return tuple(said)


def _bits_text(width: float) -> str:
    return "1 bit" if width == 1 else f"{width:g} bits"


def _fits(statistics: Statistics, run: Run) -> bool:
    return {layer: len(arrays["count"]) for layer, arrays in statistics.arrays.items()} == run.experts()


def _record_row(measured: Measurement) -> tuple[str, ...]:
    known = measured.conditions
    where = [str(known[key]) for key in ("layer", "task", "text") if known.get(key)]
    where += [f"{key} {known[key]}" for key in ("window", "stride") if known.get(key)]
    machine = [str(known[key]) for key in ("machine", "backend") if known.get(key)]
    name = measured.name.replace("_", " ")
    return name, value_text(measured), measured.unit, f"{measured.n:,}", ", ".join(where), ", ".join(machine)


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def slug(text: str) -> str:
    """Text as a part of a file's name: letters, digits, dots and hyphens."""
    kept = "".join(each if (each.isalnum() and each.isascii()) or each == "." else "-" for each in text)
    return kept.strip("-.") or "run"
