"""Which quantizer, group size and rule should be the default? Measured on a model with held-out text.

    python -m experiments.choice quantizers            # every quantizer and group size at equal code bits
    python -m experiments.choice rules                 # every scoring rule, and random ones, at equal code bits

Each line is KL from full precision in nats a token with its 95 % interval, perplexity, and stored bits a weight. Rules
are compared at equal widths (same counts in every layer, so equal bytes); quantizers differ in stored bits, which is
why these are printed: compare along that column.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from moesaic import CompressOptions, compress
from moesaic.checkpoint.reader import Checkpoint
from moesaic.evaluate.run import EvaluateOptions, evaluate
from moesaic.pipeline import make_plan
from moesaic.records import BitPlan, LayerBits, write_json

MODEL = Path(__file__).resolve().parent.parent / "models" / "demo"
SEEDS = range(5)


def quantizer_cases() -> Iterator[tuple[str, CompressOptions]]:
    """Every quantizer, group size and kind of grid."""
    for quantizer in ("rtn-minmax", "rtn", "hqq"):
        for group_size in (32, 64, 128):
            for symmetric in (False, True):
                name = f"{quantizer} g{group_size}{' symmetric' if symmetric else ' asymmetric'}"
                grid = {"quantizer": quantizer, "group_size": group_size, "symmetric": symmetric}
                options = CompressOptions(bits=2.5, rule="router_norm+max_var", **grid)
                yield name, options


def rule_cases(model: Path, work: Path, bits: float) -> Iterator[tuple[str, CompressOptions]]:
    """Every rule; the same widths the other way round; random ones."""
    initial = model / "initial_routers.safetensors"
    base = CompressOptions(bits=bits, rule="router_norm+max_var")
    yield "router norm, change", replace(base, rule="router_norm", initial=initial)
    yield "router norm, final", replace(base, rule="router_norm")
    yield "max_var", replace(base, rule="max_var")
    yield "router norm, change + max_var", replace(base, initial=initial)
    yield "router norm, final + max_var", base
    for rule, start in (("router_norm", initial), ("max_var", None)):
        plan = work / f"reversed-{rule}.json"
        _, forward = make_plan(Checkpoint.open(model), replace(base, rule=rule, initial=start))
        write_json(plan, _reversed(model, forward, replace(base, rule=rule, initial=start)).to_json())
        yield f"{rule} reversed", CompressOptions(plan=plan)
    for seed in SEEDS:
        yield f"random, seed {seed}", replace(base, rule="random", seed=seed)


def _reversed(model: Path, plan: BitPlan, options: CompressOptions) -> BitPlan:
    """The plan of the opposite ranking: same counts, most bits to the worst score."""
    scores, _ = make_plan(Checkpoint.open(model), options)
    assert scores is not None
    layers = {}
    for name, bits in plan.layers.items():
        order = sorted(range(len(bits.down)), key=lambda expert, name=name: (scores.layers[name][expert], expert))
        widths = sorted(bits.down, reverse=True)
        turned = tuple(width for _, width in sorted(zip(order, widths, strict=True)))
        layers[name] = LayerBits(turned, turned)
    return BitPlan(f"{plan.method}, reversed", None, layers)


def measure(name: str, options: CompressOptions, *, model: Path, work: Path, tokens: int) -> dict[str, Any]:
    """Compress and evaluate one case."""
    folder = compress(model, work / "packed", options, overwrite=True)
    settings = EvaluateOptions(window=256, max_tokens=tokens, speed=False)
    found = evaluate(folder, model / "heldout.txt", reference=model, options=settings)
    keys = (
        "kl",
        "kl_interval",
        "perplexity",
        "perplexity_reference",
        "top1_agreement",
        "code_bits",
        "stored_bpw",
        "tokens",
    )
    return {"case": name, **{key: found[key] for key in keys}}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=["quantizers", "rules"])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--bits", type=float, default=2.5, help="code bits, for `rules`")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--save", type=Path, help="write the figures to this JSON file")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cases = quantizer_cases() if a.question == "quantizers" else rule_cases(a.model, work, a.bits)
        for name, options in cases:
            row = measure(name, options, model=a.model, work=work, tokens=a.tokens)
            rows.append(row)
            low, high = row["kl_interval"]
            print(
                f"{name:36s} KL {row['kl']:.4f} ({low:.4f} to {high:.4f})  perplexity {row['perplexity']:.3f}  "
                f"code {row['code_bits']:.3f}  stored {row['stored_bpw']:.3f}",
                flush=True,
            )
    if a.save:
        a.save.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
