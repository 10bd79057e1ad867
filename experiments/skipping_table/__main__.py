"""Which skipping policy costs least quality at which share of the expert activations?

    python -m experiments.skipping_table MODEL... [--bits 2.5 full] [--shares 0.95 0.9 0.8 0.7 0.6 0.55]
    python -m experiments.skipping_table models/demo --quick

For every model (an ordinary checkpoint folder with a tokenizer) and every number of bits (`full`: nothing is packed)
the unpruned model is the reference: KL(unpruned || pruned) in nats a token on the held-out text, with a 95 % interval
over windows, and perplexity. Shares are those *measured on the held-out text*. The summary compares policies at
exactly one share, by interpolating log KL between the two nearest points of each curve; `-` where a curve has no two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import CompressOptions, compress
from moesaic.evaluate.conditions import conditions
from moesaic.evaluate.quality import mean_with_interval
from moesaic.fit.differentiable import differentiable
from moesaic.fit.mask_routers import Training, logits_of
from moesaic.fit.run import FLOAT_BUDGET, FitOptions, fit
from moesaic.fit.text import token_windows, tokenized
from moesaic.prune import Pruning
from moesaic.runtime.hf import load, open_model, open_tokenizer
from moesaic.runtime.skipping import attach, detach
from moesaic.text import bundled_calibration_text, read_text

SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.55)
RULE_TOKENS = 8_192  # a quantile needs no more
RULES = ("odp", "threshold", "top_p", "fixed_k", "pesf")
DESIGNS = {  # what is behind the defaults of otp: one change each
    "subsets": {"knobs": {"candidates": "subsets"}},
    "weights alone": {"knobs": {"features": "weights"}},
    "hidden alone": {"knobs": {"features": "hidden"}},
    "output error": {"training": {"metric": "output"}},
    "layers alone": {"training": {"steps": 0}},
    "layers, then whole model": {"training": {"steps": 60}},
    "whole model alone": {"training": {"layer_steps": 0}},
    "soft masks": {"training": {"layer_steps": 0, "estimator": "soft"}},
    "constant temperature": {"training": {"layer_steps": 0, "hot": 1.0, "cold": 1.0}},
    "cold start": {"training": {"layer_steps": 0, "warm_start": False}},
}


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, FitOptions]]:
    """Every policy at every share; the designs of otp at one share."""
    for share in arguments.shares:
        for name in (*RULES, "otp"):
            if name in arguments.policies:
                yield name, FitOptions(policy=name, target=share, training=arguments.training)
    for name in arguments.designs:
        changes = DESIGNS[name]
        training = replace(arguments.training, **changes.get("training", {}))
        if not training.layer_steps:
            training = replace(training, steps=arguments.design_steps)
        yield f"otp, {name}", FitOptions("otp", arguments.at, changes.get("knobs", {}), training=training)


class Held:
    """Held-out windows with the unpruned model's answers."""

    def __init__(self, model: PreTrainedModel, windows: Tensor) -> None:
        self.windows = windows
        with torch.inference_mode():
            self.teacher = [logits_of(model, row[None]).log_softmax(-1).half() for row in windows]

    @torch.inference_mode()
    def measure(self, model: PreTrainedModel, pruning: Pruning) -> dict[str, Any]:
        """KL of every window, and the share."""
        skipping = attach(model, pruning)
        skipping.count()
        kl, nll = [], []
        for row, wanted in zip(self.windows, self.teacher, strict=True):
            found = logits_of(model, row[None]).log_softmax(-1)
            p = wanted.float()
            kl.append(float((p.exp() * (p - found)).sum()))
            nll.append(float(-found.gather(-1, row[1:, None]).sum()))
        shares, share = skipping.shares(), skipping.share()
        detach(model)
        counts = [self.windows.shape[1] - 1] * len(kl)
        mean, loss = mean_with_interval(kl, counts), mean_with_interval(nll, counts)
        return {
            "kl": mean.value,
            "kl_interval": [mean.low, mean.high],
            "perplexity": math.exp(loss.value),
            "share": share,
            "share_of_layers": shares,
            "kl_windows": [each / counts[0] for each in kl],
        }


def interpolated(rows: list[dict[str, Any]], policy: str, share: float) -> float | None:
    """KL of a policy at exactly that share, log-linear between its two nearest points; None outside its curve."""
    points = sorted((row["share"], math.log(max(row["kl"], 1e-9))) for row in rows if row["case"] == policy)
    for (low, a), (high, b) in itertools.pairwise(points):
        if low <= share <= high and high > low:
            return math.exp(a + (b - a) * (share - low) / (high - low))
    return None


def run_model(folder: Path, bits: str, work: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one model at one number of bits."""
    if bits == "full":
        model = open_model(folder, dtype=torch.float32)
    else:
        packed = compress(
            folder,
            work / f"{folder.name}-{bits}",
            CompressOptions(bits=float(bits), rule=arguments.rule),
            overwrite=True,
        )
        model = load(packed, dtype=torch.float32, pruning=False)
    model.requires_grad_(False)
    tokenizer = open_tokenizer(folder)
    vocabulary = model.get_input_embeddings().num_embeddings
    cut = {"length": arguments.window, "least": 4, "vocabulary": vocabulary}
    text = bundled_calibration_text() if arguments.calibration is None else read_text(arguments.calibration)
    windows = token_windows(tokenized(tokenizer, text), limit=arguments.tokens, seed=0, **cut)
    heldout = arguments.text or folder / "heldout.txt"
    held_windows = token_windows(tokenized(tokenizer, read_text(heldout)), limit=arguments.held, seed=1, **cut)
    rows = []
    with differentiable(model, FLOAT_BUDGET):
        held = Held(model, held_windows)
        for case, options in cases(arguments):
            start = time.perf_counter()
            rules = options.policy != "otp"
            try:
                pruning = fit(
                    model,
                    windows[: max(2, RULE_TOKENS // windows.shape[1])] if rules else windows,
                    options.make_policy(),
                    options,
                )
            except Exception as error:  # a row that cannot be is a row of the table
                print(f"{folder.name:10s} {bits:>5s} {case:26s} failed: {error}", flush=True)
                continue
            row = {"model": folder.name, "bits": bits, "case": case, "target": options.target}
            row |= {"seconds": time.perf_counter() - start, "calibration_share": pruning.reached}
            row |= held.measure(model, pruning) | {"held_tokens": held_windows.numel()}
            rows.append(row)
            low, high = row["kl_interval"]
            print(
                f"{row['model']:10s} {bits:>5s} {case:26s} target {options.target:.2f} share {row['share']:.3f}  "
                f"KL {row['kl']:.5f} ({low:.5f} to {high:.5f})  ppl {row['perplexity']:.3f}  {row['seconds']:.0f} s",
                flush=True,
            )
    return rows


def summary(rows: list[dict[str, Any]], at: float) -> None:
    """KL of every policy at exactly one share."""
    for key in sorted({(row["model"], row["bits"]) for row in rows}):
        mine = [row for row in rows if (row["model"], row["bits"]) == key]
        found = {name: interpolated(mine, name, at) for name in (*RULES, "otp")}
        text = "  ".join(f"{name} {'-' if kl is None else f'{kl:.5f}'}" for name, kl in found.items())
        print(f"{key[0]} at {key[1]} bits, KL at a share of exactly {at}: {text}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="checkpoint folders")
    parser.add_argument("--bits", nargs="+", default=["2.5", "full"])
    parser.add_argument("--rule", default="router_norm+max_var", help="scoring rule of the bit plan")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--policies", nargs="+", default=[*RULES, "otp"])
    parser.add_argument("--designs", nargs="*", choices=DESIGNS, help="the ablation of otp too; all without names")
    parser.add_argument("--at", type=float, default=0.8, help="share of the ablation and of the summary")
    parser.add_argument("--calibration", type=Path, help="default: the text that comes with moesaic")
    parser.add_argument("--text", type=Path, help="held-out text; default: heldout.txt of the model's folder")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=65_536, help="calibration tokens")
    parser.add_argument("--held", type=int, default=32_768, help="held-out tokens")
    parser.add_argument("--steps", type=int, default=Training().steps, help="steps of otp through the whole model")
    parser.add_argument("--design-steps", type=int, default=100, help="steps of designs without layer steps")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a share of 0.8 and its neighbours, little text")
    parser.add_argument("--save", type=Path, help="write the rows and the conditions to this JSON file")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    a.designs = [] if a.designs is None else a.designs or list(DESIGNS)
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.quick:
        a.bits, a.shares, a.window, a.tokens, a.held, a.steps = ["2.5"], [0.85, 0.75], 128, 16_384, 8_192, 0
        a.design_steps = 10
    a.training = Training(steps=a.steps)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for folder in a.models:
            for bits in a.bits:
                rows += run_model(folder, bits, Path(work), a)
    summary(rows, a.at)
    if a.save:
        how = {key: str(value) for key, value in vars(a).items()}
        a.save.write_text(json.dumps({"conditions": conditions(**how), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
