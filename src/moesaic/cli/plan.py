"""`moesaic plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes
from moesaic.cli.compress_flags import CompressFlags

if TYPE_CHECKING:
    from rich.table import Table

    from moesaic.options import CompressOptions
    from moesaic.planning.forecast import Figure, Forecast

_BYTES = ("source_bytes", "folder_bytes", "peak_memory", "memory_available", "disk", "disk_free")
_FIGURES = {
    "code_bits": "code bits",
    "stored_bpw": "stored bits a weight",
    "source_bytes": "checkpoint",
    "folder_bytes": "packed folder",
    "cost": "predicted cost",
    "peak_memory": "peak memory of the run",
    "memory_available": "memory free now",
    "disk": "disk the run needs",
    "disk_free": "disk free now",
    "seconds": "time of the run",
}


@takes(flags=CompressFlags, output=Output)
def command(
    model: p.Model,
    flags: CompressFlags,
    output: Output,
    bits: Annotated[
        str | None,
        typer.Option(
            help="Average code bits of an expert's weight; several, such as 2,2.5,3, to compare.",
            rich_help_panel="How many bits",
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="Costs of every expert at every width: to predict what the plan costs.  [default: not predicted]",
            rich_help_panel="How many bits",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens in the key-value cache.  [default: what the model was made for, 8192 at most]",
            rich_help_panel="Where it fits",
        ),
    ] = None,
    gpu_hour: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Price of an accelerator for an hour: adds what running costs.",
            rich_help_panel="Where it fits",
        ),
    ] = None,
    accelerator: Annotated[
        float, typer.Option(min=1, help="Memory of that accelerator, in GB.", rich_help_panel="Where it fits")
    ] = 80,
    measure: Annotated[
        bool, typer.Option(help="Make samples to predict time and memory.", rich_help_panel="This run")
    ] = True,
    threads: p.Threads = None,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Show what `compress` would do, give and need: a map of bits, sizes, memory, time, and where the result fits.

    Nothing is written. Scores are worked out as `compress` does; beside that only samples of the weights are read.
    """
    from moesaic.cli.console import set_threads

    options = [flags.options(**budget) for budget in budgets(bits=bits)]
    output.begin()
    set_threads(threads)
    wishes: dict[str, Any] = {"context": context, "gpu_hour": gpu_hour, "accelerator": accelerator, "measure": measure}
    show_forecasts(model, options, output, costs=costs, trust_remote_code=trust_remote_code, **wishes)


def budgets(**given: str | None) -> list[dict[str, Any]]:
    """`bits="2,2.5"` -> `[{"bits": 2.0}, {"bits": 2.5}]`; one empty set of options where nothing is given.

    Raises:
        BadParameter: not numbers.
    """
    found: list[dict[str, Any]] = []
    for name, text in given.items():
        for part in text.split(",") if text else ():
            try:
                found.append({name: float(part)})
            except ValueError:
                raise typer.BadParameter(f"--{name} {text}: {part!r} is not a number; give one, or 2,2.5,3") from None
    return found or [dict.fromkeys(given)]


def show_forecasts(
    model: str,
    options: list[CompressOptions],
    output: Output,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    costs: Path | None = None,
    trust_remote_code: bool = False,
    **wishes: Any,
) -> None:
    """Forecast each of some runs and show them: one in full, several as a table."""
    import time

    import psutil

    from moesaic.checkpoint.locate import locate
    from moesaic.checkpoint.reader import Checkpoint
    from moesaic.packing.job import check_target
    from moesaic.planning.forecast import Wishes, forecast
    from moesaic.records import CostTable, read_json

    if out is not None:
        check_target(out, overwrite=overwrite)
        wishes["place"] = next(place for place in out.absolute().parents if place.exists())
    table = None if costs is None else CostTable.from_json(read_json(costs))
    for each in options:  # names are checked before anything is read
        each.make_quantizer()
    checkpoint = Checkpoint.open(locate(model), trust_remote_code=trust_remote_code)
    wishes["startup"] = time.time() - psutil.Process().create_time()
    with output.bar() as bar:
        found = [forecast(checkpoint, each, Wishes(**wishes), costs=table, progress=bar) for each in options]
    whole = [{"model": checkpoint.name, **each.to_json()} for each in found]
    show = (lambda: _print_one(checkpoint.name, found[0])) if len(found) == 1 else (lambda: _print_many(found))
    output.print(whole[0] if len(whole) == 1 else {"forecasts": whole}, show)


def _print_one(name: str, found: Forecast) -> None:
    from moesaic.cli.bit_map import bit_map, legend
    from moesaic.cli.console import paper

    console = paper()
    layers = {layer: {"gate_up": bits.gate_up, "down": bits.down} for layer, bits in found.plan.layers.items()}
    console.print(f"{name}: {found.plan.method}", style="bold", highlight=False)
    console.print("\nBits of the experts: a line a layer, a digit an expert, expert 0 first")
    for line in (*bit_map(layers, width=console.width), *legend(layers)):
        console.print(line, no_wrap=True, crop=False)
    console.print("\nBytes by kind of weight")
    console.print(_kinds(found))
    console.print("\nWhat the run gives and needs")
    console.print(_figures(found.figures))
    for warning in _warnings(found):
        console.print(f"  {warning}", style="bold red")
    console.print(f"\nWhere it fits: how many of each hold the weights and {_cache_words(found)}")
    console.print(_fits([found], ["after"]))
    console.print(
        "  Weights and cache only: what a runtime needs beside them is not counted. Accelerators have their nominal "
        "10^9 bytes a GB.",
        style="dim",
    )
    _print_running(console, [found])


def _print_many(found: list[Forecast]) -> None:
    from moesaic.cli.console import paper, size_text, table

    console = paper()
    console.print("What each budget gives", style="bold")
    known = [each.cost for each in found if each.cost is not None]
    made = table("asked", "code bits", "stored bits", "experts", "folder", *(("cost", "") if known else ()))
    for each in found:
        asked = each.plan.requested_bits
        made.add_row(
            "-" if asked is None else f"{asked:g}",
            f"{each.figures['code_bits'].value:.3f}",
            f"{each.figures['stored_bpw'].value:.3f}",
            size_text(each.kinds[0].after),
            size_text(each.folder_bytes),
            *(_cost_cells(each.cost, known) if known else ()),
        )
    made.columns[-1].justify = "left" if known else "right"
    console.print(made)
    source = found[0].figures["cost"].source
    console.print(f"  stored bits and sizes: from the format, to the byte; cost: {source}", style="dim")
    console.print(f"\nWhere they fit: how many of each hold the weights and {_cache_words(found[0])}")
    console.print(_fits(found, [_asked(each) for each in found]))
    _print_running(console, found)


def _asked(found: Forecast) -> str:
    bits = found.plan.requested_bits
    return "plan" if bits is None else f"{bits:g} bits"


def _cost_cells(cost: float | None, known: list[float]) -> tuple[str, str]:
    """A cost, and a bar as long as it is beside the largest."""
    if cost is None:
        return "-", ""
    bar = "█" * max(1, round(20 * cost / max(known))) if max(known) > 0 and cost >= 0 else ""
    return f"{cost:.4g}", bar


def _kinds(found: Forecast) -> Table:
    from moesaic.cli.console import count_text, size_text, table

    made = table("kind", "weights", "before", "after", "bits a weight")
    for each in found.kinds:
        bits = f"{8 * each.after / each.weights:.2f}"
        made.add_row(each.kind, count_text(each.weights), size_text(each.before), size_text(each.after), bits)
    weights, before, after = (sum(getattr(e, name) for e in found.kinds) for name in ("weights", "before", "after"))
    row = ("all", count_text(weights), size_text(before), size_text(after), f"{8 * after / weights:.2f}")
    made.add_section()
    made.add_row(*row, style="bold")
    return made


def _figures(figures: dict[str, Figure]) -> Table:
    from moesaic.cli.console import duration_text, size_text, table

    made = table("what", "figure", "from")
    made.columns[2].justify, made.columns[2].style = "left", "dim"
    for name, words in _FIGURES.items():
        figure = figures.get(name)
        if figure is None or figure.value is None:
            continue
        if name in _BYTES:
            text = size_text(figure.value)
        elif name == "seconds":
            text = duration_text(figure.value)
        else:
            text = f"{figure.value:.4g}"
        made.add_row(words, text, figure.source)
    return made


def _warnings(found: Forecast) -> list[str]:
    value = {name: figure.value for name, figure in found.figures.items()}
    pairs = {"peak_memory": ("memory_available", "memory"), "disk": ("disk_free", "room on the disk")}
    return [
        f"There is not enough {words} for this run."
        for need, (have, words) in pairs.items()
        if (value.get(need) or 0) > (value.get(have) or float("inf"))
    ]


def _cache_words(found: Forecast) -> str:
    from moesaic.cli.console import size_text

    if found.cache is None:
        return "not the cache of what was read, whose form is not known for this model"
    return f"a key-value cache of {found.context} tokens, {size_text(found.cache.size)} ({found.cache.source})"


def _fits(found: list[Forecast], heads: list[str]) -> Table:
    from moesaic.cli.console import size_text, table

    made = table("memory", "bytes", "before", *heads)
    for rows in zip(*(each.fits for each in found), strict=True):
        numbers = [rows[0].before, *(row.after for row in rows)]
        made.add_row(rows[0].place, size_text(rows[0].capacity), *(_how_many(number) for number in numbers))
    return made


def _how_many(number: int) -> str:
    return "fits" if number == 1 else f"{number} x"


def _print_running(console: Any, found: list[Forecast]) -> None:
    from moesaic.cli.console import table

    runs = [(_asked(each), each.running) for each in found if each.running is not None]
    if not runs:
        return
    first = runs[0][1]
    console.print(
        f"\nRunning cost at {first.price:g} an hour (--gpu-hour) for {first.accelerator_gb:g} GB (--accelerator)"
    )
    made = table("", "needed", "an hour", "saved an hour")
    made.add_row("before", str(first.before), f"{first.before_hour:g}", "")
    for asked, run in runs:
        made.add_row(asked, str(run.after), f"{run.after_hour:g}", f"{run.before_hour - run.after_hour:g}")
    console.print(made)
