"""How long does GPTQ take for one expert of Mixtral-8x7B's size, and how much memory, next to the published routine?

    python -m benchmarks.gptq --work FOLDER [--hidden 512 --intermediate 1792] [--bits 2 3] [--rows 4096] [--repeats 3]

The job is three matrices with their second moments given: gate and up `[intermediate, hidden]`, which share one, and
down `[hidden, intermediate]`. The published routine (Frantar et al. 2023, restated below in plain torch: Cholesky,
inverse, Cholesky of the inverse, then blocks of 128 columns) and ours take turns, each in a process of its own, so
that peak memory is the system's own account of it and a busy machine slows both. Both end at the weights in codes and
scales; ours also searches the ranges of groups and stores scales in a byte. The error is that of the outputs over the
first rows, relative to the outputs themselves.

The work is cut in four pieces: each way's factor and rounding for the inputs of gate and up, and for those of down. A
piece that is finished is kept in FOLDER (`gptq.jsonl`) and not done again. Rows do not know each other, so that of
matrices with more than `--rows` rows an even sample of so many is rounded, and its time is scaled to all: of gate and
up together 1 in 7 at full size, of down all. Factors are made whole.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.compress import run
from moesaic.evaluate.conditions import processor_name
from moesaic.quantize import GPTQ

WAYS = ("ours", "published")
CHECKED_ROWS = 128
BLOCK = 128


def published_factor(moment: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moment, as published. `[in, in]`"""
    hessian = moment.float().clone()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)


def published(weight: Tensor, inverse: Tensor, bits: int, group_size: int) -> Tensor:
    """The routine as published, with ranges from minimum to maximum; the decoded weights `[out, in]` float32."""
    work = weight.float().clone()
    made, top = torch.zeros_like(work), 2**bits - 1
    for start in range(0, work.shape[1], BLOCK):
        end = min(start + BLOCK, work.shape[1])
        block, corner = work[:, start:end].clone(), inverse[start:end, start:end]
        rounded, errors = torch.zeros_like(block), torch.zeros_like(block)
        for i in range(end - start):
            if (start + i) % group_size == 0:
                group = work[:, start + i : start + i + group_size]
                low, high = group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)
                scale = (high - low) / top
                zero = torch.round(-low / scale)
            column = block[:, i : i + 1]
            codes = torch.clamp(torch.round(column / scale) + zero, 0, top)
            rounded[:, i : i + 1] = scale * (codes - zero)
            error = (column - rounded[:, i : i + 1]) / corner[i, i]
            block[:, i:] -= error.matmul(corner[i : i + 1, i:])
            errors[:, i : i + 1] = error
        made[:, start:end] = rounded
        work[:, end:] -= errors.matmul(inverse[start:end, end:])
    return made


def make_inputs(folder: Path, hidden: int, intermediate: int) -> None:
    """Weights of the usual size, and moments of inputs that share a few directions, as those of real layers do."""
    torch.manual_seed(0)
    for name, rows, columns in (("gate_up", 2 * intermediate, hidden), ("down", hidden, intermediate)):
        torch.save((torch.randn(rows, columns) * 0.02).bfloat16(), folder / f"{name}.weight")
        inputs = torch.randn(512, columns) * torch.randn(columns).mul(0.7).exp()
        moment = inputs.T @ inputs / 512
        moment.diagonal().mul_(1.5)
        torch.save(moment, folder / f"{name}.moment")


def relative_error(weight: Tensor, made: Tensor, moment: Tensor) -> float:
    """Squared error of the outputs over the outputs' own square, of the first rows."""
    weight = weight[:CHECKED_ROWS].float()
    error = weight - made[:CHECKED_ROWS]
    return float(((error @ moment) * error).sum() / ((weight @ moment) * weight).sum())


def job(folder: Path, way: str, entry: str, a: argparse.Namespace) -> dict[str, object]:
    """One piece, in this process: seconds of the factor and of each width for all rows, errors, peak memory."""
    weight, moment = torch.load(folder / f"{entry}.weight"), torch.load(folder / f"{entry}.moment")
    step = max(1, len(weight) // a.rows)
    sample = weight[::step].contiguous()
    quantizer = GPTQ(group_size=a.group_size)
    start = time.perf_counter()
    factor = quantizer.prepare(moment) if way == "ours" else published_factor(moment)
    found: dict[str, object] = {"factor": time.perf_counter() - start, "rows": len(sample), "of": len(weight)}
    seconds, errors = {}, {}
    for bits in a.bits:
        start = time.perf_counter()
        if way == "ours":
            rounded = quantizer.quantize(sample, bits, factor)
            seconds[bits] = time.perf_counter() - start
            made = rounded.dequantize()
        else:
            made = published(sample, factor, bits, a.group_size)
            seconds[bits] = time.perf_counter() - start
        seconds[bits] *= len(weight) / len(sample)
        errors[bits] = relative_error(sample, made, moment)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**found, "seconds": seconds, "errors": errors, "peak": peak}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/gptq"))
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=14336)
    parser.add_argument("--bits", type=int, nargs="+", default=[3])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--piece", nargs=2, metavar=("WAY", "ENTRY"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    folder = a.work / f"{a.hidden}x{a.intermediate}"
    if a.piece:
        print(json.dumps(job(folder, *a.piece, a)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "complete").exists():
        make_inputs(folder, a.hidden, a.intermediate)
        (folder / "complete").touch()
    print(f"{processor_name()}, {a.threads} threads; hidden {a.hidden}, intermediate {a.intermediate}", flush=True)
    report(a, [piece for number in range(a.repeats) for piece in measure(a, number)])


def measure(a: argparse.Namespace, number: int) -> list[dict]:
    """The pieces of one repetition: those that are kept, the others measured now."""
    kept = a.work / "gptq.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    names = ("hidden", "intermediate", "bits", "group_size", "rows", "threads")
    given = [
        text
        for name in ("work", *names)
        for text in (f"--{name.replace('_', '-')}", *map(str, as_list(getattr(a, name))))
    ]
    found = []
    for entry in ("gate_up", "down"):
        for way in WAYS:
            key = {"way": way, "entry": entry, "number": number, **{name: getattr(a, name) for name in names}}
            piece = next((line for line in lines if line["key"] == key), None)
            if piece is None:
                done = run([sys.executable, "-m", "benchmarks.gptq", "--piece", way, entry, *given])
                piece = {"key": key, **json.loads(done.output.strip().splitlines()[0])}
                with kept.open("a") as file:
                    file.write(json.dumps(piece) + "\n")
            rounding = ", ".join(f"{bits} bits {seconds:.1f} s" for bits, seconds in piece["seconds"].items())
            print(
                f"{entry}, {way}: factor {piece['factor']:.1f} s, rounding {rounding} "
                f"({piece['rows']} of {piece['of']} rows), peak {piece['peak'] / 1e9:.2f} GB",
                flush=True,
            )
            found.append(piece)
    return found


def as_list(value: object) -> list:
    """A list, or a list of one."""
    return value if isinstance(value, list) else [value]


def report(a: argparse.Namespace, pieces: list[dict]) -> None:
    """Print what came out: the expert as a whole, at each width."""

    def total(way: str, part: Callable[[dict], float]) -> float:
        mine = [piece for piece in pieces if piece["key"]["way"] == way]
        entries = {piece["key"]["entry"] for piece in mine}
        return sum(statistics.median(part(p) for p in mine if p["key"]["entry"] == entry) for entry in entries)

    for bits in a.bits:
        rounding = {way: total(way, lambda piece: piece["seconds"][str(bits)]) for way in WAYS}  # noqa: B023
        whole = {way: total(way, lambda piece: piece["factor"]) + rounding[way] for way in WAYS}
        error = {p["key"]["way"]: p["errors"][str(bits)] for p in pieces if p["key"]["entry"] == "down"}
        print(
            f"one expert at {bits} bits: ours {whole['ours']:.1f} s ({rounding['ours']:.1f} s of it rounding), "
            f"published {whole['published']:.1f} s ({rounding['published']:.1f} s); ours is "
            f"{whole['published'] / whole['ours']:.2f} times as fast, rounding alone "
            f"{rounding['published'] / rounding['ours']:.2f}; "
            f"error of down {error['ours']:.2e} and {error['published']:.2e}"
        )
    peak = {way: max(p["peak"] for p in pieces if p["key"]["way"] == way) / 1e9 for way in WAYS}
    print(f"peak memory: ours {peak['ours']:.2f} GB, published {peak['published']:.2f} GB")


if __name__ == "__main__":
    main()
