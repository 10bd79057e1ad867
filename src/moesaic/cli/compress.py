"""`moesaic compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes
from moesaic.cli.compress_flags import CompressFlags


@takes(flags=CompressFlags, output=Output)
def command(
    model: p.Model,
    flags: CompressFlags,
    output: Output,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.", rich_help_panel="This run")],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing: show the plan, and what the run will need, as `moesaic plan` does.",
            rich_help_panel="This run",
        ),
    ] = False,
    overwrite: p.Overwrite = False,
    threads: p.Threads = None,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Compress a Mixture-of-Experts checkpoint: every expert gets its own width.

    The output appears when it is complete. A run that was stopped goes on when the same command is given again.
    """
    from moesaic.cli.console import note, set_threads
    from moesaic.json_files import read_json
    from moesaic.pipeline import compress

    options = flags.options()
    output.begin()
    set_threads(threads)
    if dry_run:
        from moesaic.cli.plan import show_forecasts

        show_forecasts(model, [options], output, out=out, overwrite=overwrite, trust_remote_code=trust_remote_code)
        return
    try:
        with output.bar() as bar:
            compress(model, out, options, overwrite=overwrite, trust_remote_code=trust_remote_code, progress=bar)
    except KeyboardInterrupt:
        if out.with_name(out.name + ".partial").exists():
            note(f"interrupted; the finished part is in {out}.partial, and the same command goes on from there")
        else:
            note("interrupted; nothing was written")
        raise typer.Exit(130) from None
    summary = summarize(out, read_json(out / "moesaic.json"))
    output.print(summary, None if output.quiet else lambda: _print(summary))


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
    bpw, size = (summary["requested"].get(name) for name in ("bpw", "size"))
    limit = "" if bpw is None else f" (asked for at most {bpw:g})"
    print(f"  stored        {summary['stored_bpw']:.3f} bits a weight, scales and padding included{limit}")
    print(f"  experts       {size_text(summary['expert_bytes'])}")
    limit = "" if size is None else f" (asked for at most {size_text(size)})"
    print(f"  whole folder  {size_text(summary['folder_bytes'])}{limit}")
