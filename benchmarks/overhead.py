"""What does Python cost in one call of an expert layer, and in a token? Times what is too small to take time itself.

Calls count processor time of this one thread, so that other programs on the machine do not show. A token through models
of tiny matrices is timed by the clock, with two threads: once for what a model does once, and what a layer adds.

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
from random_model import CONFIGS, random_model
from transformers import MixtralConfig, Qwen3MoeConfig

from moesaic.kernels import cpu, describe, select

CALLS, REPEATS = 500, 15
SMALL = Dimensions(hidden=64, intermediate=64, experts=8, top_k=2)
TOKENS, MANY_LAYERS = 300, 9
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 16}
TINY = {
    "mixtral": lambda layers: MixtralConfig(
        **SIZES, num_hidden_layers=layers, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda layers: Qwen3MoeConfig(
        **SIZES,
        num_hidden_layers=layers,
        num_key_value_heads=2,
        moe_intermediate_size=64,
        num_experts=16,
        num_experts_per_tok=4,
        decoder_sparse_step=1,
    ),
}


def microseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of one call: the median and the least of some repeats."""
    call()
    seconds = timeit.repeat(call, timer=time.process_time, number=CALLS, repeat=REPEATS)
    samples = [1e6 * repeat / CALLS for repeat in seconds]
    return statistics.median(samples), min(samples)


def token(name: str, layers: int) -> float:
    """Microseconds of a decoded token through a model of so many layers of tiny matrices: the median."""
    CONFIGS[name] = TINY[name]
    model, _ = random_model(name, layers=layers, plan="2", linears=8)
    cache, taken = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values, []
    for _ in range(TOKENS):
        start = time.perf_counter()
        model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken)


def main() -> None:
    os.environ["MOESAIC_NUM_THREADS"] = "1"
    layer = random_layer(SMALL, "mixed 1-4")
    x, weights, index = torch.randn(1, SMALL.hidden), torch.full((1, 2), 0.5), torch.tensor([[0, 5]])
    plan = cpu.plan_of(layer.spec).layer
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
        os.environ["MOESAIC_NUM_THREADS"] = "2"
        torch.set_num_threads(2)
        for name in TINY:
            one, many = token(name, 1), token(name, MANY_LAYERS)
            further = (many - one) / (MANY_LAYERS - 1)
            print(f"a token of {name}: {one:.0f} with one layer, {further:.1f} for each further one")


if __name__ == "__main__":
    main()
