"""How much faster do decoding and prefill get with a share of the expert activations?

Whole decoder layers at real dimensions with random codes (`random_model`), packed, and the policies as they run in a
loaded model: routers, attention, key-value cache, sorting, policy, kernels. Every round goes over all cases in turn,
each reading the same tokens, and each case is compared with the unpruned one of the same round, so that a slow minute
of the machine hits both. Times are medians of the rounds; the ratio is the median of the rounds' ratios, with its
range and a bootstrap interval.

    python benchmarks/skipping.py --threads 2 --save runs/skipping_speed.json
    python benchmarks/skipping.py --model qwen3-30b-a3b --shares 0.75
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from random_layers import PLANS, VOCABULARY
from random_model import CONFIGS, random_model
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.evaluate.conditions import conditions
from moesaic.fit.hard_masks import share_cost
from moesaic.fit.rules import Recorded, record, thresholds
from moesaic.kernels import select
from moesaic.prune import Otp, Pruning, Threshold
from moesaic.prune.decide import THRESHOLD
from moesaic.prune.otp import log_change
from moesaic.runtime.skipping import attach, detach, expert_counts

POLICIES = ("threshold", "otp")
CONTEXT = 8  # tokens before the decoded ones


@dataclass
class Case:
    """One policy at one share; None for the unpruned model."""

    policy: str
    target: float
    pruning: Pruning | None
    ran: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # "decode", "prefill": a token, a round


def make_pruning(model: PreTrainedModel, recorded: Recorded, name: str, share: float) -> Pruning:
    """A ratio rule that runs the share, or untrained mask routers that do: they compute what trained ones do."""
    top_k = next(iter(recorded.values()))[0].weights.shape[1]
    states = thresholds(Threshold(), recorded, share)
    if name == "threshold":
        return Pruning(name, Threshold(), top_k, share, share, states)
    policy, counts = Otp(), expert_counts(model)
    generator, masks = torch.Generator().manual_seed(0), policy.masks(top_k)
    errors = [log_change(part.weights, masks[:-1]) for parts in recorded.values() for part in parts]
    more = {"cost": torch.tensor(share_cost(torch.cat(errors), masks, share)), THRESHOLD: torch.tensor(0.5)}
    layers = {
        layer: policy.start(top_k, model.config.hidden_size, generator, experts=counts[layer]) | more
        for layer in recorded
    }
    return Pruning(name, policy, top_k, share, share, layers)


@torch.inference_mode()
def run_case(model: PreTrainedModel, case: Case, tokens: Tensor, decoded: int, *, keep: bool) -> None:
    """One round of a case: a prefill of all tokens, and decoding of the last ones. Counts what runs, or times."""
    skipping = None if case.pruning is None else attach(model, case.pruning)
    for kind in ("prefill", "decode"):
        if skipping is not None and not keep:
            skipping.count()
        seconds = _prefill(model, tokens) if kind == "prefill" else _decode(model, tokens[:, : CONTEXT + decoded])
        if keep:
            case.seconds.setdefault(kind, []).append(seconds)
        else:
            case.ran[kind] = 1.0 if skipping is None else skipping.share()
    detach(model)


def _prefill(model: PreTrainedModel, tokens: Tensor) -> float:
    start = time.perf_counter()
    model(tokens, use_cache=False, logits_to_keep=1)
    return (time.perf_counter() - start) / tokens.shape[1]


def _decode(model: PreTrainedModel, tokens: Tensor) -> float:
    cache = model(tokens[:, :CONTEXT], use_cache=True).past_key_values
    start = time.perf_counter()
    for place in range(CONTEXT, tokens.shape[1]):
        model(tokens[:, place : place + 1], past_key_values=cache, use_cache=True)
    return (time.perf_counter() - start) / (tokens.shape[1] - CONTEXT)


def ratios(case: Case, base: Case, kind: str) -> dict[str, Any]:
    """How many times the unpruned speed: median, range, and a bootstrap interval of the median over rounds."""
    each = [b / c for b, c in zip(base.seconds[kind], case.seconds[kind], strict=True)]
    drawn = random.Random(0)
    medians = sorted(statistics.median(drawn.choices(each, k=len(each))) for _ in range(1000))
    return {
        "policy": case.policy,
        "target": case.target,
        "kind": kind,
        "share": case.ran[kind],
        "ms_per_token": 1e3 * statistics.median(case.seconds[kind]),
        "times_unpruned": statistics.median(each),
        "range": [min(each), max(each)],
        "interval": [medians[25], medians[975]],
        "rounds": each,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, default="mixtral-8x7b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--plan", choices=PLANS, default="mixed 2 3", help="bits of the experts, in turns")
    parser.add_argument("--linears", type=int, default=4, choices=(2, 3, 4, 8, 16), help="bits of the attention")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.9, 0.75, 0.6])
    parser.add_argument("--decoded", type=int, default=24, help="tokens decoded in a round")
    parser.add_argument("--prefill", type=int, default=48, help="tokens of the prefill")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--save", type=Path, help="write the rows and the conditions to this JSON file")
    return parser.parse_args()


def main() -> None:
    a = parse()
    os.environ["MOESAIC_NUM_THREADS"] = str(a.threads)
    torch.set_num_threads(a.threads)
    model, sizes = random_model(a.model, layers=a.layers, plan=a.plan, linears=a.linears)
    generator = torch.Generator().manual_seed(0)
    length = max(a.prefill, CONTEXT + a.decoded)
    tokens = torch.randint(0, VOCABULARY, (1, length), generator=generator)
    recorded = record(model, tokens[:, : CONTEXT + a.decoded])  # so that the share is that of decoding
    cases = [Case("unpruned", 1.0, None)]
    cases += [Case(p, s, make_pruning(model, recorded, p, s)) for s in a.shares for p in POLICIES]
    print(f"{a.model}, {a.layers} layers, experts {a.plan} bits, attention {a.linears} bits, {a.threads} threads")
    print(f"kernels {select('cpu').NAME}; a token reads {sizes.experts / 1e6:.0f} MB of experts unpruned, ", end="")
    print(f"{sizes.other / 1e6:.0f} MB of attention; {a.rounds} rounds of {a.decoded} decoded tokens")
    for turn in range(a.rounds + 1):  # the first round warms up
        for case in cases:
            run_case(model, case, tokens, a.decoded, keep=turn > 0)
    rows = [ratios(case, cases[0], kind) for kind in ("decode", "prefill") for case in cases]
    print(f"{'':8} {'policy':>10} asked      ran  ms/token  times unpruned (95 % interval; range)")
    for row in rows:
        (low, high), (least, most) = row["interval"], row["range"]
        print(
            f"{row['kind']:8} {row['policy']:>10} {row['target']:5.2f} {row['share']:8.1%} {row['ms_per_token']:9.2f}"
            f"  {row['times_unpruned']:.2f} ({low:.2f} to {high:.2f}; {least:.2f} to {most:.2f})"
        )
    if a.save:
        how = {key: getattr(a, key) for key in ("model", "layers", "plan", "linears", "decoded", "prefill")}
        a.save.write_text(json.dumps({"conditions": conditions(**how), "rows": rows}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
