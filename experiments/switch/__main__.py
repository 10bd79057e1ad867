"""Command line: `python -m experiments.switch --corpus FOLDER --work FOLDER [--save RECORD]`.

Pretrains, fine-tunes, measures and writes the record; what is finished in the work folder is not done again.
`--finetune N` only fine-tunes with that seed, so that several can run side by side. `--figures` draws what a record
holds and measures nothing. `--quick` is a small form on the bundled text.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from .figures import draw
from .measure import Lines, Measured
from .models import Run, ensure_finetuned, ensure_pretrained
from .quick import bundled_corpus
from .record import make_record
from .report import markdown
from .settings import FULL, QUICK, Settings

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "experiments" / "records" / "switch.json"


def carry_out(settings: Settings, corpus: Path, work: Path) -> dict[str, Any]:
    """All of the experiment; returns the record."""
    run = Run(settings, corpus, work)
    ensure_pretrained(run)
    for seed in run.seeds:
        ensure_finetuned(run, seed)
    measured = [Measured(run, seed, Lines(work / f"measured_{seed}.jsonl")) for seed in run.seeds]
    for table in settings.tables.values():
        for each in measured:
            each.ensure(table)
    for each in measured:
        each.ensure_truth()
    return make_record(run, measured)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of DOMAIN.{train,valid,test}.txt files")
    parser.add_argument("--work", type=Path, help="folder of checkpoints and finished measurements")
    parser.add_argument("--save", type=Path, help="where the record goes; record.json in the work folder otherwise")
    parser.add_argument("--finetune", type=int, metavar="SEED", help="only fine-tune with this seed")
    parser.add_argument("--tables", nargs="+", choices=FULL.tables, help="measure and report only these")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figures", nargs="?", type=Path, const=RECORD, help="draw this record")
    a = parser.parse_args()
    if a.figures is not None:
        draw(json.loads(a.figures.read_text(encoding="utf-8")), ROOT / "docs" / "figures")
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if a.work is None or (a.corpus is None and not a.quick):
        parser.error("give --work, and --corpus or --quick")
    settings = QUICK if a.quick else FULL
    if a.tables:
        settings = dataclasses.replace(settings, tables={name: settings.tables[name] for name in a.tables})
    corpus = bundled_corpus(a.work / "corpus") if a.quick and a.corpus is None else a.corpus
    if a.finetune is not None:
        ensure_finetuned(Run(settings, corpus, a.work), a.finetune)
        return
    record = carry_out(settings, corpus, a.work)
    path = a.save or a.work / "record.json"
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    print(markdown(record))


if __name__ == "__main__":
    main()
