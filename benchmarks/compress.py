"""How fast is data-free compression, and how much memory does it take, on Mixtral-8x7B's layer dimensions?

    python -m benchmarks.compress --work FOLDER

Writes a checkpoint of two such layers (5.8 GB) into FOLDER once, then runs real commands in processes of their own and
prints: the time and bytes of the router-norm assignment; the peak memory and the rate of `compress` for each quantizer;
the memory of a process that has loaded the result. Rates are bytes of bfloat16 source per second, and per core used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import MixtralConfig

from benchmarks.synthetic import write_checkpoint
from moesaic.evaluate.conditions import processor_name
from moesaic.packing.layout import pack
from moesaic.quantize import QUANTIZERS

CASES = {
    "rtn, min-max": ["--quantizer", "rtn-minmax"],
    "rtn, clipped": ["--quantizer", "rtn"],
    "hqq": ["--quantizer", "hqq"],
}


@dataclass(frozen=True)
class Run:
    """A finished process."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def run(command: list[str]) -> Run:
    """Run a process to its end; time and peak memory are the system's own account of it."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        output, errors = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {errors}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output + errors)


def rounding_rates(threads: int) -> None:
    """Print how fast one Mixtral-8x7B matrix is rounded to codes and packed, processor time of one thread."""
    torch.set_num_threads(1)
    matrix = (torch.randn(14336, 4096, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    size = matrix.numel() * matrix.element_size() / 1e6
    for name in CASES.values():
        quantizer = QUANTIZERS[name[1]](symmetric=True)
        rates = []
        for bits in (1, 2, 3, 4):
            start = time.process_time()
            rounded = quantizer(matrix, bits)
            middle = time.process_time()
            pack(rounded)
            end = time.process_time()
            rates.append(f"{bits} bits {size / (middle - start):.0f} ({size / (end - start):.0f} with packing)")
        print(f"one thread, {name[1]}, MB/s of bfloat16: {', '.join(rates)}")
    torch.set_num_threads(threads)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rule", default="alpha_tail", help="of `compress`")
    parser.add_argument("--only", choices=list(CASES), action="append", help="these quantizers only")
    a = parser.parse_args()
    source = a.work / "mixtral-2-layers"
    if not (source / "config.json").exists():
        write_checkpoint(source, MixtralConfig(num_hidden_layers=2))
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    print(f"{processor_name()}, {os.cpu_count()} cores, {a.threads} threads; source {size / 1e9:.2f} GB of bfloat16")

    rounding_rates(a.threads)
    moesaic = [sys.executable, "-m", "moesaic"]
    assignment = run([*moesaic, "score", str(source), "--rule", "router_norm", "--out", str(a.work / "scores.json")])
    print(f"router-norm assignment: {assignment.output.strip()} (whole process {assignment.seconds:.1f} s)")
    out = a.work / "packed"
    for name in a.only or CASES:
        shutil.rmtree(out, ignore_errors=True)
        command = [*moesaic, "compress", str(source), "-o", str(out), "--bits", "2.5", "--rule", a.rule]
        command += ["--threads", str(a.threads)]
        done = run([*command, "--json", *CASES[name]])
        summary = json.loads(done.output.strip().splitlines()[0])
        print(
            f"compress, {name}: {done.seconds:.0f} s, {size / 1e6 / done.seconds:.0f} MB/s, "
            f"{size / 1e6 / done.cpu_seconds:.0f} MB/s a core, peak {done.peak_bytes / 1e9:.2f} GB, "
            f"{summary['stored_bpw']:.3f} bits a weight"
        )
    loaded = run([sys.executable, "-m", "benchmarks.load", str(out)])
    print(loaded.output.strip().splitlines()[0])


if __name__ == "__main__":
    main()
