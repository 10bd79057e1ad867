"""`moesaic inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.cli.bundles import Output, takes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from moesaic.checkpoint.overview import KindSize, Overview

_TREATMENT = {
    "routed experts": "packed, each expert at its own width",
    "shared experts": "packed at --other-bits: every token meets them",
    "attention": "packed at --other-bits",
    "dense MLP": "packed at --other-bits",
    "embeddings": "kept: rows are looked up, not multiplied",
    "head": "packed at --head-bits: every token reads all of it",
    "norms": "kept: too small to save anything",
    "routers": "kept: they decide which experts run",
    "other": "kept: moesaic knows no use of it",
}


@takes(output=Output)
def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint folder, a packed folder, or a hub id owner/name.")
    ],
    output: Output,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Also build the architecture and check every shape against it, as `compress` does; slower."
        ),
    ] = False,
) -> None:
    """Say what a model folder holds: expert layers, routers, sizes by kind, and what moesaic would do with each.

    Reads config.json and headers, no weights. Of a packed folder it shows the plan and what was reached.
    """
    from moesaic.packing import MANIFEST

    output.begin(libraries=check)
    folder = Path(model).expanduser()
    if not folder.exists():
        from moesaic.checkpoint.locate import locate

        folder = locate(model)
    if (folder / MANIFEST).is_file():
        _show_packed(folder, output)
    else:
        _show_checkpoint(folder, output, check=check)


def _show_checkpoint(folder: Path, output: Output, *, check: bool) -> None:
    from moesaic.checkpoint.overview import Overview

    found = Overview.of(folder)
    checked: dict[str, Any] = {}
    if check:
        from moesaic.checkpoint.reader import Checkpoint

        layers = Checkpoint.open(folder).layers
        checked = {"checked": [{"name": each.name, "experts": each.experts, "router": each.router} for each in layers]}
    output.print({**found.to_json(), **checked}, lambda: _print_checkpoint(found, checked=check))


def _print_checkpoint(found: Overview, *, checked: bool) -> None:
    from moesaic.cli.console import count_text, facts, paper, size_text

    console = paper()
    console.print(f"{found.folder}: {found.config.get('model_type', 'no model type')}", style="bold")
    rows = [
        ("files", f"{found.files} with {found.tensors} tensors, {size_text(found.total_bytes)}"),
        ("weights", f"{count_text(found.weights)}{_active(found)}"),
        ("layers", f"{found.layers or '?'}, {len(found.blocks)} of them with experts"),
        *(("experts", line) for line in _blocks(found)),
    ]
    if found.blocks:
        rows.append(("top-k", str(found.top_k or "not said by config.json")))
        rows.append(("shared experts", "yes" if found.shared_experts else "none"))
        rows.append(("router", "; ".join(found.router_form())))
    console.print(facts(rows))
    console.print()
    console.print(_kinds(found.kinds))
    reason = found.refusal()
    if reason:
        console.print(f"\n  compress would refuse it: {reason}", style="bold red")
    elif checked:
        console.print("\n  Checked: the architecture is known, and every tensor has the shape that it asks for.")
    else:
        console.print("\n  From names, shapes and config.json. --check asks the architecture too.", style="dim")


def _active(found: Overview) -> str:
    from moesaic.cli.console import count_text

    return "" if found.active_weights is None else f", {count_text(found.active_weights)} of them active for a token"


def _blocks(found: Overview) -> list[str]:
    """Runs of expert layers of one form, a line each."""
    from moesaic.cli.console import count_text

    lines = []
    for (experts, weights), run in groupby(found.blocks, key=lambda block: (block.experts, block.expert_weights)):
        names = [block.name for block in run]
        lines.append(f"{experts} of {count_text(weights)} weights in {_span(names)}")
    return lines


def _span(names: list[str]) -> str:
    """`model.layers.0.mlp` to `model.layers.3.mlp` -> `model.layers.0…3.mlp`"""
    first, last = names[0].split("."), names[-1].split(".")
    differ = [place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b]
    if len(names) == 1 or len(first) != len(last) or len(differ) != 1:
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    first[differ[0]] += f"…{last[differ[0]]}"
    return ".".join(first)


def _kinds(kinds: tuple[KindSize, ...]) -> Table:
    from moesaic.cli.console import count_text, size_text, table

    made = table("kind", "weights", "bytes", "dtype", "what compress does with it")
    made.columns[3].justify = made.columns[4].justify = "left"
    for each in kinds:
        rest = each.size - each.packable
        words = _TREATMENT[each.kind] if each.packable or "kept" in _TREATMENT[each.kind] else "kept"
        if each.packable and rest:
            words += f"; {size_text(rest)} of biases and small layers kept"
        made.add_row(each.kind, count_text(each.weights), size_text(each.size), "/".join(each.dtypes), words)
    return made


def _show_packed(folder: Path, output: Output) -> None:
    from moesaic.json_files import read_json
    from moesaic.packing.manifest import read_manifest

    manifest = read_manifest(folder)
    experts = read_json(folder / "config.json").get("quantization_config", {}).get("experts", {})
    layers = {
        name: {entry: [int(width) for width in text.split()] for entry, text in entries.items()}
        for name, entries in experts.items()
    }
    found = {key: value for key, value in manifest.items() if key != "scores"}
    found |= {"folder": str(folder), "packed": True, "files": len(manifest["files"])}
    output.print(found, lambda: _print(folder, manifest, layers))


def _print(folder: Path, manifest: Mapping[str, Any], layers: Mapping[str, Mapping[str, list[int]]]) -> None:
    from moesaic.cli.bit_map import bit_map, legend
    from moesaic.cli.console import facts, paper, size_text

    console: Console = paper()
    source, options = manifest["source"], manifest["options"]
    console.print(f"{folder}: packed by moesaic {manifest['versions']['moesaic']}", style="bold")
    grid = "symmetric" if options["symmetric"] else "asymmetric"
    rows = [
        ("made from", f"{source['name']} ({source['model_type']})"),
        ("method", manifest["plan"]["method"]),
        ("rounding", f"{options['quantizer']}, groups of {options['group_size']}, {grid}"),
        ("other layers", f"{options['other_bits']} bits, output head {options.get('head_bits', 16)}"),
        ("code bits", f"{manifest['code_bits']:.3f} a weight of the experts"),
        ("stored", f"{manifest['stored_bpw']:.3f} bits a weight, scales and padding included"),
        ("experts", size_text(manifest["expert_bytes"])),
        ("whole folder", f"{size_text(manifest['total_bytes'])} in {len(manifest['files'])} files"),
    ]
    console.print(facts(rows))
    if layers:
        console.print("\nBits of the experts: a line a layer, a digit an expert, expert 0 first")
        for line in (*bit_map(layers, width=console.width), *legend(layers)):
            console.print(line, no_wrap=True, crop=False)
    console.print("\n  `moesaic verify` checks the files against their hashes.", style="dim")
