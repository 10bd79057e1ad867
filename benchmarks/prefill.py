"""How near are many tokens at once to the processor's integer peak? Times expert layers with the native kernels.

Prints tokens per second through one layer, int8 multiply-adds per second, and their share of what a loop of integer dot
products on registers reached in the same round.

    python benchmarks/prefill.py --model mixtral-8x7b --plans 2 4 --rows 128 512 --threads 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from itertools import product

import torch
from random_layers import MODELS, PLANS, Dimensions, random_layer, routes

from moesaic.kernels import cpu
from moesaic.kernels.layer import ExpertLayer

PEAK_ROUNDS = 1_000_000


def measure(layer: ExpertLayer, model: Dimensions, rows: int, threads: int) -> tuple[float, float]:
    """Seconds of a layer, and multiply-adds per second of the peak loop before and after it."""
    os.environ["MOESAIC_NUM_THREADS"] = str(threads)
    x, weights = torch.randn(rows, model.hidden), torch.full((rows, model.top_k), 1 / model.top_k)
    index = routes(model, rows, 1)[0]
    before = cpu.native().dot_product_rate(PEAK_ROUNDS, threads)
    start = time.perf_counter()
    cpu.experts(x, index, weights, layer)
    seconds = time.perf_counter() - start
    return seconds, (before + cpu.native().dot_product_rate(PEAK_ROUNDS, threads)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mixtral-8x7b")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=["1", "2", "3", "4", "mixed 1-4"])
    parser.add_argument("--rows", nargs="+", type=int, default=[4, 16, 64, 128, 512])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = MODELS[options.model]
    print(f"{options.model}, {cpu.available()[1].split(',')[0]}, torch {torch.__version__}, {options.rounds} rounds")
    print(f"{'bits':>10} threads  rows  ms/layer  tokens/s   GMAC/s    peak  of peak")
    for plan in options.plans:
        layer = random_layer(model, plan)
        for rows, threads in product(options.rows, options.threads):
            samples = [measure(layer, model, rows, threads) for _ in range(options.rounds)]
            seconds, peak = (statistics.median(column) for column in zip(*samples, strict=True))
            rate = rows * model.top_k * model.expert_weights / seconds
            print(
                f"{plan:>10} {threads:>7} {rows:>5} {1e3 * seconds:>9.2f} {rows / seconds:>9.1f} "
                f"{rate / 1e9:>8.0f} {peak / 1e9:>7.0f} {100 * rate / peak:>6.0f} %"
            )


if __name__ == "__main__":
    main()
