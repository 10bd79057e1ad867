"""How fast is llama.cpp, or a fork of it, on the same expert layers? Times its llama-bench and our kernels in turns.

For every type asked for, a model of a few layers with the dimensions of a real one is written as GGUF (random weights,
experts of that type, all else Q8_0), and one without experts. What a token costs more with experts, over the number of
layers, is the time of an expert layer; beside it stands ours at the nearest stored bits per weight, timed in the same
round. Rounds go over all cases, so that a slow minute of the machine hits both sides. With `--whole` times are those of
a token through the whole model, ours in transformers with attention at 8 bits, theirs with Q8_0.

    python benchmarks/llama_cpp.py --llama-bench llama.cpp/build/bin/llama-bench --types Q2_K IQ2_XS Q4_K --threads 1 2
    python benchmarks/llama_cpp.py --llama-bench llama.cpp/build/bin/llama-bench --types Q2_K:2 Q3_K:3 Q4_K:4 --rows 1
    python benchmarks/llama_cpp.py --llama-bench llama.cpp/build/bin/llama-bench --types Q2_K:2 --rows 1 --whole
    python benchmarks/llama_cpp.py --llama-bench ik_llama.cpp/build/bin/llama-bench --bench-args "-rtr 1"

Types that only a fork knows come from its own quantizer: `--folder FOLDER` keeps the files, `llama-quantize
--allow-requantize FOLDER/Q4_0.gguf IQ2_KS.gguf IQ2_KS` makes another, and `--types IQ2_KS.gguf:2` times it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Type
from random_layers import MODELS, PLANS, VOCABULARY, Dimensions, expert_bytes, random_layer, routes
from random_model import random_model
from synthetic_gguf import TYPES, Shape, bits_per_weight, write
from transformers import PreTrainedModel

from moesaic.kernels import cpu, describe
from moesaic.kernels.layer import ExpertLayer

ARCHITECTURES = {"mixtral-8x7b": ("llama", 32, 8), "qwen3-30b-a3b": ("qwen3moe", 32, 4)}
LEAST_SECONDS = 0.4  # of our side of a round: as long as theirs
WITHOUT = "none"  # the model without experts


@dataclass
class Case:
    """A type at a number of rows and threads; a sample a round. Seconds are those of one call for all rows."""

    kind: str
    rows: int  # 1: decode, more: prefill
    threads: int
    theirs: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)


def stored_bits(layer: ExpertLayer, model: Dimensions) -> float:
    """Stored bits of a weight of the layer, scales and zero points included."""
    return (
        8 * sum(expert_bytes(layer, expert) for expert in range(layer.experts)) / model.expert_weights / layer.experts
    )


def nearest_plan(bits: float, model: Dimensions) -> str:
    """Our plan with the stored bits per weight nearest to `bits`."""
    small = Dimensions(hidden=256, intermediate=256, experts=model.experts, top_k=model.top_k)
    return min(PLANS, key=lambda plan: abs(stored_bits(random_layer(small, plan), small) - bits))


def bench(program: Path, model: Path, case: Case, tokens: int, more: list[str]) -> float:
    """Seconds of one call for `case.rows` tokens, from llama-bench."""
    what = ["-p", "0", "-n", str(tokens)] if case.rows == 1 else ["-p", str(case.rows), "-n", "0"]
    command = [str(program), "-m", str(model), "-t", str(case.threads), "-r", "1", "-o", "json", *what, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    return case.rows / tokens_per_second(done.stdout)


def tokens_per_second(output: str) -> float:
    """The single rate in llama-bench's JSON."""
    results = json.loads(output[output.index("[") :])
    if len(results) != 1:
        raise SystemExit(f"llama-bench printed {len(results)} results where one was asked for")
    return float(results[0]["avg_ts"])


def our_seconds(layer: ExpertLayer, model: Dimensions, case: Case) -> float:
    """Seconds of one of our expert layers."""
    os.environ["MOESAIC_NUM_THREADS"] = str(case.threads)
    x, weights = torch.randn(case.rows, model.hidden), torch.full((case.rows, model.top_k), 1 / model.top_k)
    indices = routes(model, case.rows, max(4, model.experts // model.top_k) if case.rows == 1 else 1)
    cpu.experts(x, indices[-1], weights, layer)
    calls, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < LEAST_SECONDS:
        for index in indices:
            cpu.experts(x, index, weights, layer)
        calls += len(indices)
    return seconds / calls


def type_and_plan(text: str) -> str:
    """`TYPE`, `TYPE:PLAN` or `FILE.gguf:PLAN`, looked at."""
    kind, _, plan = text.partition(":")
    known = is_file(kind) or kind in (each.name for each in TYPES)
    if not known or (plan and plan not in PLANS):
        raise argparse.ArgumentTypeError(f"{text}: no such type or plan")
    if is_file(kind) and (not plan or not Path(kind).is_file()):
        raise argparse.ArgumentTypeError(f"{text}: no such file, or no plan after it")
    return text


def is_file(kind: str) -> bool:
    """Whether a type is given as a file that holds it."""
    return kind.endswith(".gguf")


def their_bits(kind: str, paths: dict[str, Path], shape: Shape) -> float:
    """Stored bits of an expert's weight: the type's; of a file, what it has more than the one without experts."""
    if not is_file(kind):
        return bits_per_weight(Type[kind])
    weights = shape.layers * shape.experts * 3 * shape.hidden * shape.intermediate
    return 8 * (paths[kind].stat().st_size - paths[WITHOUT].stat().st_size) / weights


@torch.inference_mode()
def our_whole_seconds(model: PreTrainedModel, case: Case, tokens: int) -> float:
    """Seconds of one of our steps through a whole model: a decoded token, or a prefill of `case.rows`."""
    os.environ["MOESAIC_NUM_THREADS"] = str(case.threads)
    torch.set_num_threads(case.threads)
    ids = torch.randint(0, VOCABULARY, (1, max(case.rows, tokens + 2)))
    if case.rows > 1:
        model(ids[:, : case.rows], use_cache=False, logits_to_keep=1)
        start = time.perf_counter()
        model(ids[:, : case.rows], use_cache=False, logits_to_keep=1)
        return time.perf_counter() - start
    cache = model(ids[:, :2], use_cache=True).past_key_values
    start = time.perf_counter()
    for place in range(2, tokens + 2):
        model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
    return (time.perf_counter() - start) / tokens


def write_models(folder: Path, shape: Shape, kinds: list[str]) -> dict[str, Path]:
    """One file for each type, and one without experts."""
    paths = {kind: Path(kind) if is_file(kind) else folder / f"{kind}.gguf" for kind in [*kinds, WITHOUT]}
    for kind, path in paths.items():
        if not path.is_file():
            write(
                path,
                shape if kind != WITHOUT else shape.without_experts(),
                Type[kind] if kind != WITHOUT else Type.Q8_0,
            )
    return paths


def report(
    cases: list[Case],
    plans: dict[str, str],
    bits: dict[str, float],
    layers: dict[str, ExpertLayer],
    options: argparse.Namespace,
) -> None:
    """Medians; a layer's time is the median of the differences inside a round."""
    model = MODELS[options.model]
    what = "ms/model" if options.whole else "ms/layer"
    print(f"{'type':>8} {'bpw':>5} {'ours':>10} {'bpw':>5} threads  rows  tokens/s  {what}  ours  times")
    without = {(case.rows, case.threads): case.theirs for case in cases if case.kind == WITHOUT}
    for case in cases:
        if case.kind == WITHOUT:
            continue
        pairs = zip(case.theirs, without[case.rows, case.threads], strict=True)
        each = [whole if options.whole else (whole - rest) / options.layers for whole, rest in pairs]
        theirs = statistics.median(each)
        ours, rate = statistics.median(case.ours), case.rows / statistics.median(case.theirs)
        plan = plans[case.kind]
        our_bits = stored_bits(layers[plan], model)
        print(
            f"{Path(case.kind).stem:>8} {bits[case.kind]:>5.2f} {plan:>10} {our_bits:>5.2f} {case.threads:>7} "
            f"{case.rows:>5} {rate:>9.1f} "
            f"{1e3 * theirs:>9.2f} {1e3 * ours:>5.2f} {theirs / ours:>6.2f}"
        )


def run(options: argparse.Namespace, folder: Path) -> None:
    """Write the models, go round, report."""
    model = MODELS[options.model]
    architecture, heads, key_value_heads = ARCHITECTURES[options.model]
    shape = Shape(
        architecture,
        model.hidden,
        model.intermediate,
        model.experts,
        model.top_k,
        options.layers,
        heads,
        key_value_heads,
        VOCABULARY,
    )
    plans = {
        kind: plan or nearest_plan(bits_per_weight(Type[kind]), model)
        for kind, _, plan in (asked.partition(":") for asked in options.types)
    }
    paths = write_models(folder, shape, list(plans))
    layers = {plan: random_layer(model, plan) for plan in set(plans.values())}
    wholes = {}
    if options.whole:
        wholes = {plan: random_model(options.model, layers=options.layers, plan=plan, linears=8)[0] for plan in layers}
    cases = [Case(*key) for key in product([WITHOUT, *plans], options.rows, options.threads)]
    for _ in range(options.rounds):
        for case in cases:
            case.theirs.append(bench(options.llama_bench, paths[case.kind], case, options.tokens, options.bench_args))
            if case.kind == WITHOUT:
                continue
            plan = plans[case.kind]
            if options.whole:
                case.ours.append(our_whole_seconds(wholes[plan], case, options.tokens))
            else:
                case.ours.append(our_seconds(layers[plan], model, case))
    report(cases, plans, {kind: their_bits(kind, paths, shape) for kind in plans}, layers, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", type=Path, required=True, metavar="PATH")
    parser.add_argument("--bench-args", type=shlex.split, default=[], help="more options for it, such as '-rtr 1'")
    parser.add_argument("--model", choices=ARCHITECTURES, default="mixtral-8x7b")
    parser.add_argument(
        "--types",
        nargs="+",
        type=type_and_plan,
        default=["Q2_K", "Q3_K", "Q4_K"],
        metavar="TYPE[:PLAN]",
        help=f"of {', '.join(kind.name for kind in TYPES)}, or a GGUF file; our plan beside it, of "
        f"{', '.join(PLANS)}, is the nearest one in stored bits unless named",
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 128, 512])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="whole models, not the expert layers alone")
    parser.add_argument("--tokens", type=int, default=32, help="generated in a decode run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the GGUF files here, and use those that are there")
    options = parser.parse_args()
    print(f"{options.model}, {options.layers} layers, ours: {describe('cpu', 'cpu')}")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        return run(options, options.folder)
    with tempfile.TemporaryDirectory() as folder:
        return run(options, Path(folder))


if __name__ == "__main__":
    main()
