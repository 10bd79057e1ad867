"""`moesaic evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic.cli import parameters as p


def command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A packed folder, or an ordinary checkpoint.")],
    text: Annotated[Path, typer.Option(help="Held-out text, UTF-8.")],
    against: Annotated[
        str | None, typer.Option(help="The full-precision checkpoint to compare with: folder or hub id.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window.  [default: 2048, or what the model can]")
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens between windows.  [default: the window]")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Use only the first tokens of the text.")] = None,
    speed: Annotated[bool, typer.Option(help="Measure speed and memory, in a process of its own.")] = True,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate for the speed.")] = 32,
    save: Annotated[Path | None, typer.Option(help="Write run records to this JSON file.")] = None,
    pruning: p.SkipExperts = True,
    threads: p.Threads = None,
    trust_remote_code: p.TrustRemoteCode = False,
    json_: p.Json = False,
    quiet: p.Quiet = False,
) -> None:
    """Measure a model: perplexity, divergence from full precision, sizes, speed, memory."""
    from moesaic.checkpoint.locate import locate
    from moesaic.cli.console import Bar, quiet_libraries, set_threads
    from moesaic.errors import UsageError
    from moesaic.evaluate.run import EvaluateOptions, evaluate, records
    from moesaic.records import write_json

    if save is not None and not save.parent.is_dir():  # said now, not after hours of measuring
        raise UsageError(f"--save {save}: no folder {save.parent}; make it first")
    quiet_libraries()
    set_threads(threads)
    options = EvaluateOptions(
        window=window,
        stride=stride,
        max_tokens=max_tokens,
        speed=speed,
        new_tokens=new_tokens,
        threads=threads,
        pruning=pruning,
        trust_remote_code=trust_remote_code,
    )
    reference = None if against is None else locate(against)
    with Bar(quiet=quiet or json_) as bar:
        found = evaluate(folder, text, reference=reference, options=options, progress=bar)
    if save is not None:
        write_json(save, {"format": "moesaic-records/1", "records": [record.to_json() for record in records(found)]})
    if json_:
        print(json.dumps(found))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from moesaic.cli.console import size_text

    low, high = found["perplexity_interval"]
    rows = [("perplexity", f"{found['perplexity']:.3f}", f"95 % interval {low:.3f} to {high:.3f}")]
    if found["perplexity_reference"] is not None:
        rows += [
            ("  full precision", f"{found['perplexity_reference']:.3f}", ""),
            ("KL divergence", f"{found['kl']:.4f}", "nats a token, from full precision"),
            ("top-1 agreement", f"{100 * found['top1_agreement']:.2f} %", "with full precision"),
        ]
    if found["expert_share"] is not None:
        low, high = min(found["expert_share_layers"].values()), max(found["expert_share_layers"].values())
        between = f"run ({found['pruning']}); {100 * low:.1f} to {100 * high:.1f} % by layer"
        rows.append(("expert activations", f"{100 * found['expert_share']:.1f} %", between))
    rows += [
        ("code bits", f"{found['code_bits']:.3f}", "a weight of the experts"),
        ("stored bits", f"{found['stored_bpw']:.3f}", "a weight of the experts, all metadata included"),
        ("experts", size_text(found["expert_bytes"]), ""),
        ("whole folder", size_text(found["total_bytes"]), ""),
    ]
    if found["decode_tokens_per_second"] is not None:
        rows += [
            ("decode", f"{found['decode_tokens_per_second']:.1f}", f"tokens/s, backend {found['backend']}"),
            ("prefill", f"{found['prefill_tokens_per_second']:.1f}", "tokens/s"),
            ("peak memory", size_text(found["peak_memory_bytes"]), "of the process, libraries included"),
        ]
    table = Table(title=str(found["model"]), title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("", style="dim")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    Console().print(
        f"{found['tokens']} tokens of {found['text']}, window {found['window']}, stride {found['stride']}", style="dim"
    )
