"""Command line: `python -m experiments.allocation_table MODEL --text HELD_OUT --work FOLDER`.

MODEL is a checkpoint folder; the routers before training are taken from its `initial_routers.safetensors` where there
is one. A run that was stopped goes on when the command is repeated. FOLDER gets `records.jsonl`, `table.md` and
`correlations.md`. `--quick` is a part of it: two budgets, one quantizer.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import transformers

from moesaic import CompressOptions
from moesaic.pipeline import calibrate

from .cases import cases
from .measure import Yardstick, run_case
from .table import correlations, importance, markdown

RULES = ("quant_error", "hessian_trace", "fisher_error")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The finished cases; a line that a kill tore is left out."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        path.write_text("".join(json.dumps(record) + "\n" for record in found), encoding="utf-8")
    return found


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, help="calibration text; the bundled one when it is left out")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20_000, help="of the held-out text")
    parser.add_argument("--quick", action="store_true")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    a.work.mkdir(parents=True, exist_ok=True)
    initial = a.model / "initial_routers.safetensors"
    text: dict[str, Any] = {
        "calibration": () if a.calibration is None else (a.calibration,),
        "sequences": a.sequences,
        "sequence_length": a.sequence_length,
    }
    stats = a.work / "stats.safetensors"
    if not stats.exists():
        calibrate(a.model, stats, CompressOptions(bits=2.5, levels=(1, 2, 3), **text), rules=RULES)
    path = a.work / "records.jsonl"
    records = read_records(path)
    done = {record["key"] for record in records}
    wanted = list(cases(initial if initial.exists() else None, quick=a.quick))
    yardstick = Yardstick.open(a.model, a.text, tokens=a.tokens, length=a.sequence_length)
    for number, case in enumerate(wanted, 1):
        if case.key in done:
            continue
        start = time.monotonic()
        record = run_case(yardstick, case, stats=stats, text=text, work=a.work)
        records.append(record)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        took = time.monotonic() - start
        print(f"{number}/{len(wanted)} {case.key}: KL {record['kl']['mean']:.4f}, {took:.0f} s", flush=True)
    (a.work / "table.md").write_text(markdown(records), encoding="utf-8")
    ranks = importance(a.model, initial if initial.exists() else None, stats, text)
    (a.work / "correlations.md").write_text(correlations(ranks), encoding="utf-8")
    print(markdown(records))


if __name__ == "__main__":
    main()
