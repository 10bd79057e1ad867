"""`moesaic compress`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic.cli import parameters as p


def command(
    model: p.Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
    bits: Annotated[
        float | None, typer.Option(help="Average code bits of an expert's weight.", rich_help_panel="How many bits")
    ] = None,
    bpw: Annotated[
        float | None,
        typer.Option(
            help="At most so many stored bits a weight of the experts, scales and padding included.",
            rich_help_panel="How many bits",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="At most this size of the whole folder, everything included, such as 16GB or 15GiB.",
            rich_help_panel="How many bits",
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Use this plan file instead of a rule.", rich_help_panel="How many bits")
    ] = None,
    allocator: p.AllocatorName = None,
    levels: p.Levels = None,
    per_matrix: p.PerMatrix = False,
    other_bits: Annotated[
        int,
        typer.Option(
            help="Width of the other linear layers (attention, shared experts, dense MLPs); 16 leaves them.",
            rich_help_panel="How many bits",
        ),
    ] = 4,
    rule: p.Rule = "router_norm+max_var",
    initial: p.Initial = None,
    zeta: p.Zeta = 3.0,
    single_sweep: p.SingleSweep = False,
    seed: p.Seed = 0,
    quantizer: Annotated[
        str, typer.Option(help="rtn (clipped), rtn-minmax or hqq.", rich_help_panel="Rounding")
    ] = "rtn",
    group_size: Annotated[
        int, typer.Option(help="Columns that share a scale: 32, 64, 128.", rich_help_panel="Rounding")
    ] = 64,
    symmetric: Annotated[
        bool,
        typer.Option("--symmetric/--asymmetric", help="Grids without or with zero points.", rich_help_panel="Rounding"),
    ] = True,
    shard_size: Annotated[float, typer.Option(min=0.001, help="Largest file of tensors, in GB.")] = 5.0,
    overwrite: p.Overwrite = False,
    threads: p.Threads = None,
    trust_remote_code: p.TrustRemoteCode = False,
    json_: p.Json = False,
    quiet: p.Quiet = False,
) -> None:
    """Compress a Mixture-of-Experts checkpoint: every expert gets its own width.

    The output appears when it is complete. A run that was stopped goes on when the same command is given again.
    """
    from moesaic.cli.console import Bar, note, quiet_libraries, set_threads
    from moesaic.options import CompressOptions
    from moesaic.pipeline import compress
    from moesaic.records import read_json

    options = CompressOptions(
        bits=bits,
        bpw=bpw,
        size=p.parse_size(size),
        rule=rule,
        allocator=allocator,
        levels=p.parse_levels(levels),
        per_matrix=per_matrix,
        plan=plan,
        quantizer=quantizer,
        group_size=group_size,
        symmetric=symmetric,
        other_bits=other_bits,
        initial=initial,
        seed=seed,
        zeta=zeta,
        single_sweep=single_sweep,
        shard_bytes=int(shard_size * 1e9),
    )
    quiet_libraries()
    set_threads(threads)
    try:
        with Bar(quiet=quiet or json_) as bar:
            compress(model, out, options, overwrite=overwrite, trust_remote_code=trust_remote_code, progress=bar)
    except KeyboardInterrupt:
        if out.with_name(out.name + ".partial").exists():
            note(f"interrupted; the finished part is in {out}.partial, and the same command goes on from there")
        else:
            note("interrupted; nothing was written")
        raise typer.Exit(130) from None
    summary = summarize(out, read_json(out / "moesaic.json"))
    if json_:
        print(json.dumps(summary))
    elif not quiet:
        _print(summary)


def summarize(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What was reached, from the manifest."""
    details = (manifest["scores"] or {}).get("details", {})
    return {
        "out": str(out),
        "model_type": manifest["source"]["model_type"],
        "method": manifest["plan"]["method"],
        "router_norm_form": details.get("router_norm_form"),
        "requested_bits": manifest["plan"]["requested_bits"],
        "requested": manifest["plan"].get("requested", {}),
        "code_bits": manifest["code_bits"],
        "stored_bpw": manifest["stored_bpw"],
        "expert_bytes": manifest["expert_bytes"],
        "expert_weights": manifest["expert_weights"],
        "total_bytes": manifest["total_bytes"],
        "folder_bytes": manifest["plan"]["reached"]["size"],
    }


def _print(summary: dict[str, Any]) -> None:
    from moesaic.cli.console import size_text

    asked = "" if summary["requested_bits"] is None else f" (asked for {summary['requested_bits']:g})"
    print(f"{summary['out']}: {summary['method']}")
    if summary["router_norm_form"]:
        print(f"  router norm   {summary['router_norm_form']}")
    print(f"  code bits     {summary['code_bits']:.3f} a weight of the experts{asked}")
    bpw, size = (summary["requested"].get(name) for name in ("bpw", "size"))
    limit = "" if bpw is None else f" (asked for at most {bpw:g})"
    print(f"  stored        {summary['stored_bpw']:.3f} bits a weight, scales and padding included{limit}")
    print(f"  experts       {size_text(summary['expert_bytes'])}")
    limit = "" if size is None else f" (asked for at most {size_text(size)})"
    print(f"  whole folder  {size_text(summary['folder_bytes'])}{limit}")
