"""How near is decoding to the memory's speed? Times expert layers for a few tokens with the native kernels.

Prints tokens per second through one layer, GB/s of packed bytes, and their share of the read bandwidth that was
measured in the same round. Rounds go over all cases, so that a slow minute of the machine hits them all.

    python benchmarks/decode.py --model mixtral-8x7b --plans 2 3 4 --rows 1 4 --threads 1 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass, field
from itertools import product

import torch
from random_layers import MODELS, PLANS, Dimensions, expert_bytes, mapped, random_layer, routes
from torch import Tensor

from moesaic.kernels import cpu
from moesaic.kernels.layer import ExpertLayer

BANDWIDTH_BYTES = 256 << 20


@dataclass
class Case:
    """One line of the table, with a sample a round."""

    plan: str
    rows: int
    threads: int
    seconds: list[float] = field(default_factory=list)
    gigabytes: list[float] = field(default_factory=list)  # packed, per second
    shares: list[float] = field(default_factory=list)

    def line(self, model: Dimensions) -> str:
        """Medians, as text."""
        layer = statistics.median(self.seconds)
        products = self.rows * model.top_k * model.expert_weights / layer
        share = 100 * statistics.median(self.shares)
        return (
            f"{self.plan:>10} {self.threads:>7} {self.rows:>5} {1e3 * layer:>9.3f} {self.rows / layer:>10.1f} "
            f"{statistics.median(self.gigabytes):>7.1f} {share:>6.0f} % {products / 1e9:>9.0f}"
        )


def touched_bytes(layer: ExpertLayer, index: Tensor) -> int:
    return sum(expert_bytes(layer, expert) for expert in index.unique().tolist())


def measure(case: Case, layer: ExpertLayer, model: Dimensions, buffer: Tensor) -> None:
    os.environ["MOESAIC_NUM_THREADS"] = str(case.threads)
    x, weights = torch.randn(case.rows, model.hidden), torch.full((case.rows, model.top_k), 1 / model.top_k)
    indices = routes(model, case.rows, max(4, model.experts // model.top_k))
    cpu.experts(x, indices[-1], weights, layer)
    bandwidth = cpu.native().read_bandwidth(buffer, 2, case.threads)
    start = time.perf_counter()
    for index in indices:
        cpu.experts(x, index, weights, layer)
    seconds = time.perf_counter() - start
    bandwidth = (bandwidth + cpu.native().read_bandwidth(buffer, 2, case.threads)) / 2
    rate = sum(touched_bytes(layer, index) for index in indices) / seconds
    case.seconds.append(seconds / len(indices))
    case.gigabytes.append(rate / 1e9)
    case.shares.append(rate / bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mixtral-8x7b")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model = MODELS[options.model]
    print(f"{options.model}, {cpu.available()[1].split(',')[0]}, torch {torch.__version__}, {options.rounds} rounds")
    buffer = mapped(torch.ones(BANDWIDTH_BYTES, dtype=torch.uint8))
    layers = {plan: random_layer(model, plan) for plan in options.plans}
    cases = [Case(*key) for key in product(options.plans, options.rows, options.threads)]
    for _ in range(options.rounds):
        for case in cases:
            measure(case, layers[case.plan], model, buffer)
    for threads in options.threads:
        bandwidth = cpu.native().read_bandwidth(buffer, 4, threads)
        print(f"read bandwidth, {threads} threads: {bandwidth / 1e9:.1f} GB/s")
    print(f"{'bits':>10} threads  rows  ms/layer  tokens/s    GB/s   of read  GMAC/s")
    for case in cases:
        print(case.line(model))


if __name__ == "__main__":
    main()
