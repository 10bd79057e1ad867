"""Every rule at every budget with every quantizer, at equal stored bytes, on held-out text.

    python -m experiments.allocation_table MODEL --corpus CORPUS --work FOLDER --save RECORD.json

MODEL is a checkpoint folder; the routers before training are taken from its `initial_routers.safetensors` where there
is one. CORPUS has DOMAIN.train.txt and DOMAIN.test.txt files: calibration text is sampled from the first, held-out
blocks are cut from the second. Without it the bundled calibration text and `heldout.txt` beside the model are used. A
run that was stopped goes on when the command is repeated: FOLDER keeps the statistics and a line for every plan
measured. It also gets `table.md` and `correlations.md`. `--quick` is a part of it: two budgets, one quantizer, fewer
tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from experiments.held_out import Blocks, read_blocks
from experiments.journal import Journal
from experiments.texts import texts_of

from moesaic import CompressOptions
from moesaic.evaluate.conditions import conditions
from moesaic.pipeline import calibrate

from .cases import BITS, LEVELS, QUANTIZERS, QUICK_BITS, rules
from .measure import Yardstick, stored_bits
from .plans import Planned, Planner
from .table import Row, correlations, correlations_markdown, importance, markdown

COSTS = ("quant_error", "hessian_trace", "fisher_error")
LENGTH = 256
QUICK_TOKENS = 8_192


def measure_all(yardstick: Yardstick, planned: list[Planned], quantizers: list[str], journal: Journal) -> None:
    """Every plan once with every quantizer; goes on where an earlier run stopped."""
    unique = list({each.key: each for each in reversed(planned)}.values())[::-1]  # named for the first rule
    wanted = [(quantizer, each) for quantizer in quantizers for each in unique]
    for number, (quantizer, each) in enumerate(wanted, 1):
        key = f"{quantizer}|{each.key}"
        if key in journal.found:
            continue
        start = time.monotonic()
        found = yardstick.measure(quantizer, each.plan)
        values = {"kl": found.kl.tolist(), "loss": found.loss.tolist()}
        journal.add(key, {name: [round(value, 6) for value in blocks] for name, blocks in values.items()})
        about = f"{key} {each.bits:g} {each.rule}: KL {found.kl.mean():.4f}"
        print(f"{number}/{len(wanted)} {about}, {time.monotonic() - start:.1f} s", flush=True)


def table_rows(planner: Planner, planned: list[Planned], quantizers: list[str], done: Mapping[str, Any]) -> list[Row]:
    """A row for every rule, budget and quantizer; rules that came to one plan share its measurement."""
    rows = []
    for quantizer in quantizers:
        for each in planned:
            found = done[f"{quantizer}|{each.key}"]
            stored = stored_bits(planner.checkpoint, each.plan, quantizer)
            rows.append(Row(each.rule, quantizer, each.bits, stored, found["kl"], found["loss"]))
    return rows


def record(rows: list[Row], ranks: dict[str, Any], how: dict[str, Any], full: list[float]) -> dict[str, Any]:
    """What is kept in the repository: means and intervals, not blocks."""
    return {
        "conditions": how,
        "full_precision_loss": sum(full) / len(full),
        "blocks": len(full),
        "rows": [
            {
                "rule": row.rule,
                "quantizer": row.quantizer,
                "bits": row.bits,
                "stored_bpw": round(row.stored_bpw, 4),
                "kl": round(row.mean, 5),
                "half": round(row.half, 5),
                "perplexity": round(row.perplexity, 3),
            }
            for row in rows
        ],
        "correlations": ranks,
    }


def held_out(a: argparse.Namespace, texts: list[Path]) -> Blocks:
    """Blocks of the held-out text."""
    return read_blocks(a.model, texts, tokens=QUICK_TOKENS if a.quick else a.tokens, length=LENGTH)


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, help="folder of DOMAIN.train.txt and DOMAIN.test.txt files")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--save", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--sequences", type=int, default=128, help=f"of {LENGTH} calibration tokens")
    parser.add_argument("--moment-sequences", type=int, default=32, help="of them, for gptq's second moments")
    parser.add_argument("--tokens", type=int, default=16_384, help="of the held-out text")
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS))
    parser.add_argument("--bits", nargs="+", type=float, default=list(BITS))
    parser.add_argument("--quick", action="store_true")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if a.quick:
        a.quantizers, a.bits = ["rtn"], list(QUICK_BITS)
    a.work.mkdir(parents=True, exist_ok=True)
    texts = None if a.corpus is None else texts_of(a.corpus, a.work)
    text: dict[str, Any] = {
        "calibration": () if texts is None else (texts.calibration,),
        "sequences": a.sequences,
        "sequence_length": LENGTH,
    }
    stats = a.work / "stats.safetensors"
    if not stats.exists():
        calibrate(a.model, stats, CompressOptions(bits=2.5, levels=LEVELS, **text), rules=COSTS)
    initial = a.model / "initial_routers.safetensors"
    chosen = rules(initial if initial.exists() else None)
    planner = Planner(a.model, stats, text)
    planned = list(planner.plans(chosen, tuple(a.bits)))
    blocks = held_out(a, [a.model / "heldout.txt"] if texts is None else texts.held_out)
    moments = {**text, "sequences": a.moment_sequences}
    yardstick = Yardstick(a.model, blocks.ids, moments, a.work)
    settings = {"model": str(a.model), "blocks": list(blocks.ids.shape), "sequences": a.sequences}
    settings["moment_sequences"] = a.moment_sequences
    journal = Journal(a.work / "plans.jsonl", settings)
    measure_all(yardstick, planned, a.quantizers, journal)
    rows = table_rows(planner, planned, a.quantizers, journal.found)
    ranks = correlations(importance(planner, [rule for rule in chosen if "+" not in rule.name]))
    (a.work / "table.md").write_text(markdown(rows), encoding="utf-8")
    (a.work / "correlations.md").write_text(correlations_markdown(ranks), encoding="utf-8")
    print(markdown(rows))
    if a.save:
        how = conditions(model=str(a.model), tokens=blocks.tokens, window=LENGTH, sequences=a.sequences)
        how["moment_sequences"] = a.moment_sequences
        full = yardstick.full_precision_loss().tolist()
        a.save.write_text(json.dumps(record(rows, ranks, how, full)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
