"""How much faster is decoding with a share of the expert activations? Times expert layers, one token at a time.

The layers have random codes; the routing weights are made up so that a ratio rule or a mask router runs the wanted
share. What is timed is the whole step of a layer: sorting, the policy, rescaling, the kernels. Every round goes over
all cases in turn, and each case is compared with the unpruned one of the same round, so that a slow minute of the
machine hits both.

    python benchmarks/skipping.py --model mixtral-8x7b --plan "mixed 2 3" --shares 0.9 0.75 0.6 --threads 2
    MOESAIC_KERNELS=cpu python benchmarks/skipping.py --rows 64     # prefill
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass, field

import torch
from random_layers import MODELS, PLANS, Dimensions, expert_bytes, random_layer, routes
from torch import Tensor

from moesaic.kernels import select
from moesaic.kernels.layer import ExpertLayer
from moesaic.prune import Otp, Policy, Routed, State, Threshold
from moesaic.prune.decide import THRESHOLD, decide, rescale, share_threshold, sort_places

POLICIES = ("unpruned", "threshold", "otp")


@dataclass
class Case:
    """One line of the table."""

    policy: str
    share: float
    seconds: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)  # over the unpruned case of the round
    ran: float = 1.0
    gigabytes: float = 0.0  # packed, read a token

    def line(self) -> str:
        """Medians, as text."""
        low, middle, high = min(self.gains), statistics.median(self.gains), max(self.gains)
        seconds = statistics.median(self.seconds)
        return (
            f"{self.policy:>10} {self.share:>6.2f} {100 * self.ran:>6.1f} % {1e3 * seconds:>9.3f} "
            f"{middle:>7.2f} ({low:.2f} to {high:.2f}) {self.gigabytes:>8.3f}"
        )


@dataclass
class Step:
    """What a layer does for one call: routing weights and experts of some tokens, and their hidden states."""

    hidden: Tensor
    index: Tensor
    weights: Tensor


def steps(model: Dimensions, rows: int, count: int) -> list[Step]:
    """Calls in which the experts come in turns and the weights have a spread like that of a trained router."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in routes(model, rows, count):
        weights = (1.5 * torch.randn(rows, model.top_k, generator=generator)).softmax(-1).sort(descending=True).values
        made.append(Step(torch.randn(rows, model.hidden, generator=generator), index, weights))
    return made


def make_policy(case: Case, model: Dimensions, calls: list[Step]) -> tuple[Policy, State] | None:
    """A policy that runs the share on these calls; None for unpruned."""
    if case.policy == "unpruned":
        return None
    weights = torch.cat([step.weights for step in calls])
    routed = Routed(weights, weights.long(), torch.zeros(len(weights), 1), model.experts)
    value = share_threshold([routed.ratio], case.share)
    if case.policy == "threshold":
        return Threshold(), {THRESHOLD: torch.tensor(value)}
    policy = Otp()
    state = policy.start(model.top_k, model.hidden, torch.Generator().manual_seed(0))
    offset = torch.full((model.top_k,), max(value, 1e-6)).log()
    return policy, state | {"offset": offset, THRESHOLD: torch.tensor(0.5)}


def run_step(step: Step, layer: ExpertLayer, experts: int, made: tuple[Policy, State] | None) -> Tensor:
    """One call of the layer, as `runtime.skipping` does it."""
    if made is None:
        return select("cpu").experts(step.hidden, step.index, step.weights, layer)
    ranked, chosen, order = sort_places(step.weights, step.index)
    kept = decide(made[0], Routed(ranked, chosen, step.hidden, experts), made[1])
    weights = torch.zeros_like(step.weights).scatter(-1, order, rescale(ranked, kept))
    index = torch.where(torch.zeros_like(kept).scatter(-1, order, kept), step.index, -1)
    return select("cpu").experts(step.hidden, index, weights, layer)


def kept_of(step: Step, made: tuple[Policy, State] | None, experts: int) -> Tensor:
    """Which places run. `[rows, k]` bool"""
    ranked, chosen, _ = sort_places(step.weights, step.index)
    if made is None:
        return torch.ones_like(ranked, dtype=torch.bool)
    return decide(made[0], Routed(ranked, chosen, step.hidden, experts), made[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mixtral-8x7b")
    parser.add_argument("--plan", choices=PLANS, default="mixed 2 3")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.9, 0.75, 0.6])
    parser.add_argument("--rows", type=int, default=1, help="tokens of a call")
    parser.add_argument("--steps", type=int, default=32, help="calls of a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    os.environ["MOESAIC_NUM_THREADS"] = str(a.threads)
    torch.set_num_threads(a.threads)
    model = MODELS[a.model]
    layer = random_layer(model, a.plan)
    calls = steps(model, a.rows, a.steps)
    cases = [Case("unpruned", 1.0)] + [Case(name, share) for share in a.shares for name in POLICIES[1:]]
    made = {id(case): make_policy(case, model, calls) for case in cases}
    for case in cases:
        kept = [kept_of(step, made[id(case)], model.experts) for step in calls]
        case.ran = float(torch.cat(kept).float().mean())
        read = [sort_places(s.weights, s.index)[1][k].unique().tolist() for s, k in zip(calls, kept, strict=True)]
        case.gigabytes = sum(expert_bytes(layer, e) for each in read for e in each) / len(calls) / a.rows / 1e9
    print(f"{a.model}, {a.plan} bits, kernels {select('cpu').NAME}, {a.threads} threads, {a.rows} tokens a call")
    with torch.inference_mode():
        for turn in range(a.rounds + 1):
            for case in cases:
                start = time.perf_counter()
                for step in calls:
                    run_step(step, layer, model.experts, made[id(case)])
                if turn:  # the first round warms up
                    case.seconds.append((time.perf_counter() - start) / len(calls))
            if turn:
                for case in cases:
                    case.gains.append(cases[0].seconds[-1] / case.seconds[-1])
    print(f"{'policy':>10}  asked      ran  ms/layer  times unpruned (range)  GB/token")
    for case in cases:
        print(case.line())


if __name__ == "__main__":
    main()
