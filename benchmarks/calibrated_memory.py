"""How much memory does calibrated compression (GPTQ, all experts) take on Mixtral-8x7B's layer dimensions?

    python -m benchmarks.calibrated_memory --work FOLDER [--minutes 30]

Writes a checkpoint of two such layers (5.8 GB of bfloat16) into FOLDER once, with a tokenizer, and compresses
it in a process of its own with the second moments of the bundled text. That process tells its peak memory, as the
system accounts for it, after every expert. What decides the peak is one expert: its matrices, the second moments of
its inputs and their factor; a run that is stopped after some experts (`--minutes`) has seen it. The same command goes
on after the last finished layer. Hidden states come on top: 4 bytes times the hidden size for each token, three times,
from 512 MB on in mapped files that the system writes out when memory is short.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import string
import subprocess
import sys
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import MixtralConfig, PreTrainedTokenizerFast

from benchmarks.synthetic import write_checkpoint
from moesaic import CompressOptions, compress
from moesaic.evaluate.conditions import processor_name

LIMIT = 9e9  # bytes


class Tell:
    """A progress that prints weights done and peak memory as JSON lines."""

    def __init__(self) -> None:
        self._what, self._done = "", 0

    def start(self, what: str, total: int) -> None:
        """Work begins."""
        self._what, self._done = what, 0
        self._print(total=total)

    def advance(self, steps: int) -> None:
        """Weights are done."""
        self._done += steps
        self._print()

    def _print(self, **more: int) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"what": self._what, "done": self._done, "peak": peak, **more}), flush=True)


def prepare(folder: Path) -> Path:
    """The checkpoint, with a tokenizer and a text; made where it is missing."""
    source = folder / "mixtral-2-layers"
    if not (source / "config.json").exists():
        write_checkpoint(source, MixtralConfig(num_hidden_layers=2))
    if not (source / "tokenizer.json").exists():
        letters = {letter: number for number, letter in enumerate(string.printable)}
        tokenizer = Tokenizer(WordLevel(letters | {"?": len(letters)}, unk_token="?"))
        tokenizer.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
    return source


def job(source: Path, out: Path, sequences: int, length: int, rule: str) -> None:
    """Compress, in this process."""
    options = CompressOptions(
        bits=2.5, rule=rule, quantizer="gptq", group_size=128, sequences=sequences, sequence_length=length
    )
    compress(source, out, options, overwrite=True, progress=Tell())


def follow(command: list[str], minutes: float | None) -> tuple[dict[str, int], bool]:
    """Run the process; what it told last, its peak memory over all, and whether it came to its end."""
    start, last, ended = time.monotonic(), {}, True
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last |= json.loads(line)
            spent = time.monotonic() - start
            print(f"{spent:6.0f} s  {last['what']} {last['done']:>13,}  peak {last['peak'] / 1e9:.2f} GB", flush=True)
            if minutes is not None and spent > 60 * minutes:
                process.kill()
                ended = False
                break
    if ended and process.returncode != 0:
        raise SystemExit(f"the process ended with {process.returncode}")
    return last, ended


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rule", default="router_norm", help="a rule of costs has its statistics measured too")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, help="stop after the expert that is at work then")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.job:
        job(a.job, a.work / "calibrated", a.sequences, a.length, a.rule)
        return
    source = prepare(a.work)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    print(f"{processor_name()}, {a.threads} threads; source {size / 1e9:.2f} GB of bfloat16")
    print(f"gptq on {a.sequences} sequences of {a.length} tokens, rule {a.rule}")
    names = ["sequences", "length", "rule", "threads", "work"]
    given = [part for name in names for part in (f"--{name}", str(getattr(a, name)))]
    last, ended = follow(
        [sys.executable, "-m", "benchmarks.calibrated_memory", "--job", str(source), *given], a.minutes
    )
    how = "whole run" if ended else f"stopped: {last['done']:,} of {last['total']:,} weights done"
    verdict = "within" if last["peak"] <= LIMIT else "ABOVE"
    print(f"peak memory {last['peak'] / 1e9:.2f} GB ({how}), {verdict} {LIMIT / 1e9:.0f} GB")


if __name__ == "__main__":
    main()
