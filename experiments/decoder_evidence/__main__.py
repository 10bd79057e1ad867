"""Command line: `python -m experiments.decoder_evidence MODEL --work FOLDER --corpus FOLDER --save RECORD.json`.

MODEL is a checkpoint folder. The routers before training are taken from its `initial_routers.safetensors`; where the
folder around it is that of a training run, router snapshots and token frequencies come from there. A run that was
stopped goes on when the command is repeated. `--quick` measures less of everything. `--figures` draws the figures from
the records that are there, and measures nothing.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from .figures import draw
from .record import make_record, write_record
from .setting import QUICK, Setting, Sizes
from .table import summary

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure and save, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "decoder_evidence")
    parser.add_argument("--corpus", type=Path, help="folder of DOMAIN.train.txt, DOMAIN.valid.txt, DOMAIN.test.txt")
    parser.add_argument("--domains", default="", help="of the corpus, separated by commas; all when it is left out")
    parser.add_argument("--text", type=Path, help="held-out text; MODEL/heldout.txt or the corpus' test files without")
    parser.add_argument("--truth-tokens", type=int, help=f"held-out tokens for the truth ({Sizes.truth_tokens})")
    parser.add_argument("--plan-tokens", type=int, help=f"held-out tokens for the plans ({Sizes.plan_tokens})")
    parser.add_argument("--random-plans", type=int, help=f"plans by lot ({Sizes.random_plans})")
    parser.add_argument("--save", type=Path, help="record to write")
    parser.add_argument("--finished-only", action="store_true", help="measure no more plans, write what there is")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figures", action="store_true", help="draw docs/figures/evidence_*.svg from the records")
    parser.add_argument("--records", type=Path, default=ROOT / "experiments" / "records")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    a = parser.parse_args()
    if a.figures:
        for path in draw(a.records, a.out):
            print(path)
        return
    if a.model is None:
        parser.error("give a MODEL, or --figures")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    domains = tuple(name for name in a.domains.split(",") if name)
    given = {name: getattr(a, name) for name in ("truth_tokens", "plan_tokens", "random_plans")}
    sizes = replace(QUICK if a.quick else Sizes(), **{name: value for name, value in given.items() if value})
    setting = Setting.find(a.model, a.work, corpus=a.corpus, domains=domains, text=a.text, sizes=sizes)
    record: dict[str, Any] = {}
    for record in make_record(setting, finished_only=a.finished_only):  # the last one is printed
        if a.save:
            write_record(record, a.save)
    print(summary(record))


if __name__ == "__main__":
    main()
