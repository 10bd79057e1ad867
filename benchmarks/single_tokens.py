"""What do the parts of a model take for one token? Attention, the output head, and an expert whose bytes are at hand.

The first two as transformers calls them and as packed models do (`attention.py` and `dense.py` of
`runtime/single_token/`), in turns; medians of the rounds. Attention is a layer of 32 heads that share 8 heads of keys
and values, in bfloat16. The head is timed in two layers of Mixtral-8x7B's dimensions, whose codes and head lie in
mapped files. The expert is small enough to stay in the caches, so that one thread's time is that of arithmetic; it
stands for a layer of Mixtral-8x7B in that proportion.

    python benchmarks/single_tokens.py --threads 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from random_layers import MODELS, PLANS, Dimensions, mapped, random_layer
from random_model import random_model
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from moesaic.kernels import cpu
from moesaic.runtime.single_token.attention import NAME, attention
from moesaic.runtime.single_token.dense import StreamedLinear

HEADS, SHARED, SIZE = 32, 8, 128
CALLS = 30  # of attention, and of an expert, in a round
CACHED = Dimensions(hidden=2048, intermediate=1024, experts=1, top_k=1)
OVERHEAD = 11e-6  # seconds of a call: benchmarks/overhead.py
DECODED = 16  # tokens of a model in a round
VOCABULARY = 32000


def seconds(call: Callable[[], object], times: int) -> float:
    """Of one call."""
    call()
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def attention_calls(keys: int) -> dict[str, Callable[[], object]]:
    """One token, as it is called by transformers and by packed models."""
    query = torch.randn(1, HEADS, 1, SIZE).bfloat16()
    key, value = (torch.randn(1, SHARED, keys, SIZE).bfloat16() for _ in range(2))
    layer = SimpleNamespace(num_key_value_groups=HEADS // SHARED, is_causal=True)
    return {
        "transformers": lambda: sdpa_attention_forward(layer, query, key, value, None),
        "here": lambda: attention(layer, query, key, value, None),  # type: ignore[arg-type]
    }


def cached_layer(plan: str) -> float:
    """Seconds of one thread for a layer of Mixtral-8x7B's dimensions, were its bytes in the caches."""
    layer, x = random_layer(CACHED, plan), torch.randn(1, CACHED.hidden)
    index, weights = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    threads, os.environ["MOESAIC_NUM_THREADS"] = os.environ["MOESAIC_NUM_THREADS"], "1"
    taken = seconds(lambda: cpu.experts(x, index, weights, layer), CALLS) - OVERHEAD
    os.environ["MOESAIC_NUM_THREADS"] = threads
    mixtral = MODELS["mixtral-8x7b"]
    return taken * mixtral.top_k * mixtral.expert_weights / CACHED.expert_weights


def decode(model: PreTrainedModel, context: int) -> float:
    """Seconds a token after so many."""
    cache = model(torch.randint(0, VOCABULARY, (1, context)), use_cache=True, logits_to_keep=1).past_key_values
    return seconds(lambda: model(torch.randint(0, VOCABULARY, (1, 1)), past_key_values=cache, use_cache=True), DECODED)


def with_head(model: PreTrainedModel) -> PreTrainedModel:
    """The model with a bfloat16 head of a real vocabulary, in a mapped file."""
    size = (VOCABULARY, model.config.hidden_size)
    weight = (torch.randn(size) / size[1] ** 0.5).bfloat16()
    held = mapped(weight.view(torch.uint8).flatten()).view(torch.bfloat16).view(size)
    with torch.device("meta"):
        model.lm_head = nn.Linear(size[1], size[0], bias=False)
    for layer, values in ((model.lm_head, held), (model.get_input_embeddings(), weight)):
        layer.weight = nn.Parameter(values, requires_grad=False)
    return model


@torch.inference_mode()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keys", nargs="+", type=int, default=[8, 64, 512, 2048])
    a = parser.parse_args()
    os.environ["MOESAIC_NUM_THREADS"] = str(a.threads)
    torch.set_num_threads(a.threads)
    taken: dict[str, list[float]] = {}
    calls = {keys: attention_calls(keys) for keys in a.keys}
    model = with_head(random_model("mixtral-8x7b", layers=2, plan="2", linears=8)[0])
    for _ in range(a.rounds):
        for plan in PLANS:
            if len(PLANS[plan]) == 1:
                taken.setdefault(f"a layer's arithmetic, {plan} bits, 1 thread", []).append(cached_layer(plan))
        for keys, forms in calls.items():
            for form, call in forms.items():
                taken.setdefault(f"attention, {keys} keys: {form}", []).append(seconds(call, CALLS))
        for keys in a.keys:
            for form in ("sdpa", NAME):
                model.set_attn_implementation(form)
                taken.setdefault(f"two layers, {keys} tokens before: {form}", []).append(decode(model, keys))
        for form in (nn.Linear, StreamedLinear):
            model.lm_head.__class__ = form
            taken.setdefault(f"two layers, head of {VOCABULARY} rows: {form.__name__}", []).append(decode(model, 8))
    for name, each in taken.items():
        print(f"{name:60} {1e3 * statistics.median(each):8.3f} ms")


if __name__ == "__main__":
    main()
