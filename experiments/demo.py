"""`make demo`: compress the bundled model in several ways and measure what each costs.

Everything in the table is measured in this run, on the held-out text that lies beside the model.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.table import Table

from moesaic import CompressOptions, compress
from moesaic.cli.console import size_text
from moesaic.evaluate.conditions import processor_name
from moesaic.evaluate.run import EvaluateOptions, evaluate

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "demo"


@dataclass(frozen=True)
class Case:
    """A row of the table: its label, and how to compress (None: not at all)."""

    label: str
    options: CompressOptions | None


def cases(model: Path) -> list[Case]:
    """The rows."""
    return [
        Case("full precision (bfloat16)", None),
        Case("uniform 3 bits", CompressOptions(bits=3, allocator="uniform")),
        Case("the default (AlphaQ, one budget), 2.5 bits", CompressOptions(bits=2.5)),
        Case(
            "router norm + MaxVar, 2.5 bits",
            CompressOptions(bits=2.5, rule="router_norm+max_var", initial=model / "initial_routers.safetensors"),
        ),
        Case("MaxVar alone, 2.5 bits", CompressOptions(bits=2.5, rule="max_var")),
        Case("uniform 2 bits", CompressOptions(bits=2, allocator="uniform")),
    ]


def measure(case: Case, model: Path, work: Path, tokens: int) -> dict[str, Any]:
    """Compress and evaluate one row."""
    folder = model
    if case.options is not None:
        folder = work / case.label.translate(str.maketrans(" ", "-", ",()"))
        compress(model, folder, case.options, overwrite=True)
    options = EvaluateOptions(window=256, max_tokens=tokens, new_tokens=24)
    return evaluate(folder, model / "heldout.txt", reference=model, options=options)


def table(rows: list[tuple[Case, dict[str, Any]]]) -> Table:
    """The table for people."""
    found = Table(title="What compression costs the demo model", title_justify="left")
    for name in ("model", "perplexity", "KL", "stored bits", "experts", "folder", "decode tok/s"):
        found.add_column(name, justify="left" if name == "model" else "right")
    for case, row in rows:
        found.add_row(
            case.label,
            f"{row['perplexity']:.2f}",
            f"{row['kl']:.4f}",
            f"{row['stored_bpw']:.3f}",
            size_text(row["expert_bytes"]),
            size_text(row["total_bytes"]),
            f"{row['decode_tokens_per_second']:.0f}",
        )
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=ROOT / "demo-output")
    parser.add_argument("--tokens", type=int, default=10_000, help="held-out tokens to read")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    shutil.rmtree(arguments.out, ignore_errors=True)
    console = Console(width=110)
    rows = []
    for case in cases(arguments.model):
        console.print(f"… {case.label}", style="dim")
        rows.append((case, measure(case, arguments.model, arguments.out, arguments.tokens)))
    console.print(table(rows))
    last = rows[-1][1]
    console.print(
        f"{last['tokens']} held-out tokens, window {last['window']}, stride {last['stride']}; KL in nats a token from "
        f"full precision; stored bits a weight of the experts, all metadata included; decode one token at a time with "
        f"the {last['backend']} kernels on {processor_name()}.",
        style="dim",
    )
    console.print(
        f"The packed models are in {arguments.out.name}/; try: .venv/bin/moesaic generate "
        f"{arguments.out.name}/uniform-3-bits --prompt 'The'"
    )


if __name__ == "__main__":
    main()
