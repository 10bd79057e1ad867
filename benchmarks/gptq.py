"""How long does GPTQ take for one expert of Mixtral-8x7B's size, and how much memory, next to the published routine?

    python -m benchmarks.gptq [--hidden 1024 --intermediate 3584] [--bits 2 3 4] [--repeats 3]

The job is three matrices with their second moments given: gate and up `[intermediate, hidden]`, which share one, and
down `[hidden, intermediate]`. The published routine (Frantar et al. 2023, restated below in plain torch: Cholesky,
inverse, Cholesky of the inverse, then blocks of 128 columns) and ours take turns, each in a process of its own, so
that peak memory is the system's own account of it and a busy machine slows both. Both end at the weights in codes and
scales; ours also searches the ranges of groups and stores scales in a byte. The error is that of the outputs over the
first rows, relative to the outputs themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.compress import run
from moesaic.evaluate.conditions import processor_name
from moesaic.quantize import GPTQ

CHECKED_ROWS = 128
BLOCK = 128


def published(weight: Tensor, moment: Tensor, bits: int, group_size: int) -> Tensor:
    """The routine as published, with ranges from minimum to maximum; the decoded weights `[out, in]` float32."""
    work, hessian = weight.float().clone(), moment.float().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    work[:, dead] = 0
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    del hessian
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


def job(folder: Path, way: str, widths: list[int], group_size: int) -> dict[str, object]:
    """Do the job for all widths, in this process; seconds of the factors and of each width, errors, peak memory."""
    entries = {
        name: (torch.load(folder / f"{name}.weight"), torch.load(folder / f"{name}.moment"))
        for name in ("gate_up", "down")
    }
    quantizer = GPTQ(group_size=group_size)
    start = time.perf_counter()
    factors = {name: quantizer.prepare(moment) for name, (_, moment) in entries.items()} if way == "ours" else {}
    prepared = time.perf_counter() - start
    seconds, errors = [], []
    for bits in widths:
        start, made = time.perf_counter(), {}
        for name, (weight, moment) in entries.items():
            for part, matrix in enumerate(weight.chunk(2) if name == "gate_up" else [weight]):
                if way == "ours":
                    made[name, part] = quantizer.quantize(matrix, bits, factors[name])
                else:
                    made[name, part] = published(matrix, moment, bits, group_size)
        seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        down = made["down", 0]
        decoded = down.dequantize() if way == "ours" else down
        errors.append(relative_error(*entries["down"][:1], decoded, entries["down"][1]))
    return {"prepared": prepared, "seconds": seconds, "errors": errors, "peak": peak}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=14336)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", choices=["ours", "published"], help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.only:
        print(json.dumps(job(a.inputs, a.only, a.bits, a.group_size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), a.hidden, a.intermediate)
        report(a, folder)


def report(a: argparse.Namespace, folder: str) -> None:
    """Let the two take turns and print what came out."""
    print(f"{processor_name()}, {a.threads} threads; hidden {a.hidden}, intermediate {a.intermediate}")
    common = ["--inputs", folder, "--threads", str(a.threads), "--group-size", str(a.group_size)]
    common += ["--bits", *map(str, a.bits)]
    found: dict[str, list[dict]] = {"ours": [], "published": []}
    for _ in range(a.repeats):
        for way, runs in found.items():
            done = run([sys.executable, "-m", "benchmarks.gptq", "--only", way, *common])
            runs.append(json.loads(done.output.strip().splitlines()[0]))
    for place, bits in enumerate(a.bits):
        times = {
            way: statistics.median(r["prepared"] + r["seconds"][place] for r in runs) for way, runs in found.items()
        }
        errors = {way: runs[0]["errors"][place] for way, runs in found.items()}
        print(
            f"{bits} bits: ours {times['ours']:.1f} s, published {times['published']:.1f} s, "
            f"{times['published'] / times['ours']:.2f} times as fast; "
            f"error of down {errors['ours']:.2e} and {errors['published']:.2e}"
        )
    whole = {way: statistics.median(r["prepared"] + sum(r["seconds"]) for r in runs) for way, runs in found.items()}
    peak = {way: max(r["peak"] for r in runs) / 1e9 for way, runs in found.items()}
    factors = statistics.median(r["prepared"] for r in found["ours"])
    ours = f"ours {whole['ours']:.1f} s (of it factors, once, {factors:.1f} s)"
    print(f"all widths: {ours}, published {whole['published']:.1f} s")
    print(f"peak memory: ours {peak['ours']:.2f} GB, published {peak['published']:.2f} GB")


if __name__ == "__main__":
    main()
