"""Which skipping policy costs least quality at which share of the expert activations?

    python -m experiments.skipping_table MODEL... --calibration TEXT --text TEXT --work DIR [--bits 2.5 full]
    python -m experiments.skipping_table models/demo --text models/demo/heldout.txt --work DIR --quick
    python -m experiments.skipping_table.draw experiments/records/skipping_NAME.json

For every model (an ordinary checkpoint folder with a tokenizer) and every number of bits (`full`: nothing is packed)
the unpruned model is the reference: KL(unpruned || pruned) in nats a token on the held-out text, with a 95 % interval
over windows, and perplexity. Shares are those *measured on the held-out text*. The summary compares policies at
exactly one share, by interpolating log KL between the two nearest points of each curve; `-` where a curve has no two.

Thresholds of rules are quantiles on the calibration text's routing. For otp one recording a model and number of bits
serves all shares and designs. Finished rows lie in `--work` and are not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import CompressOptions, compress
from moesaic.families import find_moe_layers
from moesaic.families.skeleton import build_skeleton, load_config
from moesaic.fit.differentiable import differentiable
from moesaic.fit.mask_routers import Training
from moesaic.fit.run import FLOAT_BUDGET
from moesaic.fit.text import token_windows, tokenized
from moesaic.packing.job import MANIFEST
from moesaic.runtime.hf import load, open_model, open_tokenizer
from moesaic.text import bundled_calibration_text, read_text

from .cases import DESIGNS, RULES, SHARES, Case, cases, designs
from .measure import Fitted, Held
from .rows import Rows, write_record
from .summary import table, table_of_designs


def label(folder: Path) -> str:
    """What a model is called: its folder, or the one above an `export`."""
    return folder.resolve().parent.name if folder.name == "export" else folder.resolve().name


def open_at(folder: Path, bits: str, a: argparse.Namespace) -> PreTrainedModel:
    """The model at a number of bits, in float32; packed once."""
    if bits == "full":
        model = open_model(folder, dtype=torch.float32).requires_grad_(False)
        model.set_experts_implementation("eager")  # the fastest on a few cores
        return model
    packed = a.work / f"{label(folder)}-{bits}"
    if not (packed / MANIFEST).is_file():
        data: dict[str, Any] = {}
        if a.rule == "fisher_error":
            data = {"levels": (1, 2, 3), "allocator": "global", "sequences": 64, "sequence_length": a.window}
            data |= {"calibration": () if a.calibration is None else (a.calibration,)}
        options = CompressOptions(bits=float(bits), rule=a.rule, **data)
        compress(folder, packed, options, overwrite=True)
    return load(packed, dtype=torch.float32, pruning=False).requires_grad_(False)


def texts(folder: Path, model: PreTrainedModel, a: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Windows to calibrate on, and held-out windows."""
    tokenizer = open_tokenizer(folder)
    cut = {"length": a.window, "least": 4, "vocabulary": model.get_input_embeddings().num_embeddings}
    text = bundled_calibration_text() if a.calibration is None else read_text(a.calibration)
    calibration = token_windows(tokenized(tokenizer, text), limit=a.tokens, seed=0, **cut)
    held = read_text(a.text or folder / "heldout.txt")
    return calibration, token_windows(tokenized(tokenizer, held), limit=a.held, seed=1, **cut)


def wanted(folder: Path, a: argparse.Namespace) -> list[Case]:
    """The rows of one model, in order."""
    config = load_config(folder)
    layers = len(find_moe_layers(build_skeleton(config), config.model_type))
    training, top_k = Training(steps=a.steps), int(config.num_experts_per_tok)
    found = [
        *cases(a.policies, a.shares, training, layers=layers, top_k=top_k),
        *designs(a.designs, a.at, training, steps=a.design_steps, top_k=top_k),
    ]
    return list({case.key: case for case in found}.values())  # fixed_k has few steps, which come again


def run_model(folder: Path, bits: str, rows: Rows, a: argparse.Namespace) -> None:
    """Measure what is missing of one model at one number of bits."""
    missing = [case for case in wanted(folder, a) if _key(folder, bits, case) not in rows]
    if not missing:
        return
    model = open_at(folder, bits, a)
    windows, held_windows = texts(folder, model, a)
    with differentiable(model, FLOAT_BUDGET):
        fitted, held = Fitted(model, windows, a.work), Held(model, held_windows)
        for case in missing:
            found = {"model": label(folder), "bits": bits, "unpruned_perplexity": held.perplexity}
            row = rows.add(_key(folder, bits, case), found | fitted.row(case, held))
            print(_line(row), flush=True)


def _key(folder: Path, bits: str, case: Case) -> str:
    return f"{label(folder)}/{bits}/{case.key}"


def _line(row: dict[str, Any]) -> str:
    head = f"{row['model']:16s} {row['bits']:>5s} {row['case']:26s} target {row['target']:.3f}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    low, high = row["kl_interval"]
    kl = f"KL {row['kl']:.5f} ({low:.5f} to {high:.5f})"
    return f"{head} share {row['share']:.3f}  {kl}  ppl {row['perplexity']:.3f}  {row['seconds']:.0f} s"


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="checkpoint folders")
    parser.add_argument("--work", type=Path, required=True, help="folder for packed models and finished rows")
    parser.add_argument("--bits", nargs="+", default=["2.5", "full"])
    parser.add_argument("--rule", default="fisher_error", help="of the bit plan; fisher_error: global, widths 1 2 3")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--policies", nargs="+", default=["otp", *RULES])
    parser.add_argument("--designs", nargs="*", choices=DESIGNS, help="the ablation of otp too; all without names")
    parser.add_argument("--at", type=float, default=0.8, help="share of the ablation and of the summary")
    parser.add_argument("--calibration", type=Path, help="default: the text that comes with moesaic")
    parser.add_argument("--text", type=Path, help="held-out text; default: heldout.txt of the model's folder")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=65_536, help="calibration tokens")
    parser.add_argument("--held", type=int, default=16_384, help="held-out tokens")
    parser.add_argument("--steps", type=int, default=Training().steps, help="steps of otp through the whole model")
    parser.add_argument("--design-steps", type=int, default=60, help="steps of designs through the whole model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a share of 0.8 and its neighbours, little text")
    parser.add_argument("--save", type=Path, help="write the rows and the conditions to this JSON file")
    a = parser.parse_args()
    a.designs = [] if a.designs is None else a.designs or list(DESIGNS)
    if a.quick:
        a.bits, a.shares, a.window, a.tokens, a.held = ["2.5"], [0.85, 0.75], 128, 16_384, 8_192
        a.rule, a.design_steps = "max_var", 10
    return a


def main() -> None:
    """Measure what is missing, print the tables, write the record."""
    a = parse()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if a.threads:
        torch.set_num_threads(a.threads)
    a.work.mkdir(parents=True, exist_ok=True)
    rows = Rows(a.work / "rows.jsonl")
    for folder in a.models:
        for bits in a.bits:
            run_model(folder, bits, rows, a)
    found = [row for folder in a.models for bits in a.bits for row in rows.of(f"{label(folder)}/{bits}/")]
    print(table(found, sorted(a.shares, reverse=True), a.at))
    print(table_of_designs(found))
    if a.save:
        how = {key: getattr(a, key) for key in ("rule", "window", "tokens", "held", "steps", "design_steps")}
        named = {key: path.name for key in ("calibration", "text") if (path := getattr(a, key)) is not None}
        write_record(a.save, found, {**how, **named, "models": [label(folder) for folder in a.models]})


if __name__ == "__main__":
    main()
