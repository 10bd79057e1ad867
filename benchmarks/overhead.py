"""What does Python cost in one call of an expert layer? Times a layer that is too small to take time itself.

Counts processor time of this one thread, so that other programs on the machine do not show.

python benchmarks/overhead.py
"""

from __future__ import annotations

import os
import statistics
import time
import timeit
from collections.abc import Callable

import torch
from random_layers import Dimensions, random_layer

from moesaic.kernels import cpu, describe, select

CALLS, REPEATS = 500, 15
SMALL = Dimensions(hidden=64, intermediate=64, experts=8, top_k=2)


def microseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of one call: the median and the least of some repeats."""
    call()
    seconds = timeit.repeat(call, timer=time.process_time, number=CALLS, repeat=REPEATS)
    samples = [1e6 * repeat / CALLS for repeat in seconds]
    return statistics.median(samples), min(samples)


def main() -> None:
    os.environ["MOESAIC_NUM_THREADS"] = "1"
    layer = random_layer(SMALL, "mixed 1-4")
    x, weights, index = torch.randn(1, SMALL.hidden), torch.full((1, 2), 0.5), torch.tensor([[0, 5]])
    plan = cpu._plan_of(layer.spec).layer
    out = torch.empty_like(x)

    def export(*tensors: torch.Tensor) -> list[object]:
        return [torch.utils.dlpack.to_dlpack(tensor) for tensor in tensors]

    def native_alone() -> None:
        plan.run(
            *export(x, index, weights, out),
            export(*layer.gate_up.ordered),
            export(*layer.down.ordered),
            None,
            None,
            "int8",
            1,
        )

    print(f"microseconds a call, {describe('cpu', 'cpu')}, four widths, median (best)")
    with torch.inference_mode():
        for name, call in {
            "select and experts": lambda: select("cpu", "cpu").experts(x, index, weights, layer),
            "experts": lambda: cpu.experts(x, index, weights, layer),
            "the native module alone": native_alone,
            "through torch's dispatcher": lambda: torch.ops.moesaic.cpu_experts(
                x, index, weights, layer.gate_up.ordered, layer.down.ordered, None, None, layer.spec, None
            ),
        }.items():
            median, best = microseconds(call)
            print(f"{name:>30} {median:7.1f} ({best:.1f})")


if __name__ == "__main__":
    main()
