"""`moesaic prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes


@takes(output=Output)
def command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A packed folder, written by `moesaic compress`.")],
    output: Output,
    policy: Annotated[str, typer.Option(help="otp, odp, threshold, top_p, fixed_k or pesf.")] = "otp",
    target: Annotated[
        float, typer.Option(help="Share of the expert activations that is to run: above 1/k, at most 1.")
    ] = 0.75,
    calibration: Annotated[
        Path | None, typer.Option(help="Text to calibrate or train on, UTF-8.  [default: the one that comes along]")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Take the policy out of the folder, and leave.")] = False,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window.  [default: 512, or what the model can]")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text to use, chosen by chance.")] = 65_536,
    protect: Annotated[
        float | None, typer.Option(help="odp: share of the tokens that keep all experts.  [default: 0.02]")
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(help="otp: masks to choose from, prefixes or subsets.  [default: prefixes]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=0, help="otp: Gumbel-Softmax steps through the whole model at the end.  [default: 0]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of text, and of training.")] = 0,
    threads: p.Threads = None,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Let the model skip experts that a token does not need: calibrate or train a policy, and save it in the folder."""
    from dataclasses import replace

    from moesaic.cli.console import set_threads
    from moesaic.errors import UsageError
    from moesaic.fit.mask_routers import Training
    from moesaic.fit.run import FitOptions, fit_policy
    from moesaic.packing.manifest import read_manifest
    from moesaic.packing.pruning import remove_pruning

    if off:
        read_manifest(folder)
        found = remove_pruning(folder)
        words = "the skipping policy is gone" if found else "there was no skipping policy"
        output.print({"folder": str(folder), "removed": found}, lambda: print(f"{folder}: {words}"))
        return
    if steps is not None and policy != "otp":
        raise UsageError(f"--steps means nothing to the policy {policy}")
    knobs = {"protect": protect, "candidates": candidates}
    options = FitOptions(
        policy=policy,
        target=target,
        knobs={name: value for name, value in knobs.items() if value is not None},
        window=window,
        max_tokens=max_tokens,
        training=None if steps is None else replace(Training(), steps=steps, seed=seed),
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    output.begin()
    set_threads(threads)
    with output.bar() as bar:
        pruning = fit_policy(folder, calibration, options=options, progress=bar)
    summary = {"folder": str(folder), "policy": pruning.name, **_summary(pruning)}
    output.print(summary, None if output.quiet else lambda: _print(folder, pruning))


def _summary(pruning: Any) -> dict[str, Any]:
    keys = ("tokens", "window", "kl_held_back", "stopped")
    details = {key: pruning.details[key] for key in keys if key in pruning.details}
    return {"top_k": pruning.top_k, "target": pruning.target, "reached": pruning.reached, **details}


def _print(folder: Path, pruning: Any) -> None:
    from moesaic.cli.console import note

    print(f"{folder}: {pruning.name}, {100 * pruning.reached:.1f} % of the expert activations run")
    print(f"  asked for     {100 * pruning.target:.1f} %, of the {pruning.top_k} experts that the router chooses")
    print(f"  calibration   {pruning.details['tokens']} tokens in windows of {pruning.details['window']}")
    if "kl_held_back" in pruning.details:
        print(f"  KL            {pruning.details['kl_held_back']:.5f} nats a token from the unpruned packed model")
    if pruning.details.get("stopped"):
        note(f"training stopped: {pruning.details['stopped']}")
