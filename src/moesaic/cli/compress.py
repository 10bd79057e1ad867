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
    plan: Annotated[
        Path | None, typer.Option(help="Use this plan file instead of a rule.", rich_help_panel="How many bits")
    ] = None,
    allocator: p.AllocatorName = None,
    levels: p.Levels = None,
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
        str,
        typer.Option(
            help="rtn (clipped), rtn-minmax, hqq or gptq (uses calibration text).", rich_help_panel="Rounding"
        ),
    ] = "rtn",
    group_size: Annotated[
        int, typer.Option(help="Columns that share a scale: 32, 64, 128.", rich_help_panel="Rounding")
    ] = 64,
    symmetric: Annotated[
        bool,
        typer.Option("--symmetric/--asymmetric", help="Grids without or with zero points.", rich_help_panel="Rounding"),
    ] = True,
    act_order: p.ActOrder = False,
    calibration: p.CalibrationFiles = None,
    sequences: p.Sequences = 128,
    sequence_length: p.SequenceLength = 2048,
    stats: p.Stats = None,
    all_experts: p.AllExperts = False,
    affinity: p.Affinity = False,
    repair_routers: p.RepairRouters = False,
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
        rule=rule,
        allocator=allocator,
        levels=p.parse_levels(levels),
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
        calibration=p.parse_files(calibration),
        sequences=sequences,
        sequence_length=sequence_length,
        stats=stats,
        all_experts=all_experts,
        affinity=affinity,
        act_order=act_order,
        repair_routers=repair_routers,
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
        "calibration": manifest["calibration"],
        "code_bits": manifest["code_bits"],
        "stored_bpw": manifest["stored_bpw"],
        "expert_bytes": manifest["expert_bytes"],
        "expert_weights": manifest["expert_weights"],
        "total_bytes": manifest["total_bytes"],
    }


def _print(summary: dict[str, Any]) -> None:
    from moesaic.cli.console import size_text
    from moesaic.stats import RARE_TOKENS

    asked = "" if summary["requested_bits"] is None else f" (asked for {summary['requested_bits']:g})"
    print(f"{summary['out']}: {summary['method']}")
    if summary["router_norm_form"]:
        print(f"  router norm   {summary['router_norm_form']}")
    found = summary["calibration"]
    if found:
        print(f"  calibration   {found['sequences']} sequences of {found['sequence_length']} tokens")
        for layer, experts in found["rare_experts"].items():
            print(f"  rare experts  {layer}: {', '.join(map(str, experts))} (fewer than {RARE_TOKENS} tokens)")
        for layer, share in found["routing_changed"].items():
            print(
                f"  routers       {layer}: {share['before']:.1%} of tokens changed experts before the repair, "
                f"{share['after']:.1%} after"
            )
    print(f"  code bits     {summary['code_bits']:.3f} a weight of the experts{asked}")
    print(f"  stored        {summary['stored_bpw']:.3f} bits a weight, scales and padding included")
    print(f"  experts       {size_text(summary['expert_bytes'])}")
    print(f"  whole folder  {size_text(summary['total_bytes'])}")
