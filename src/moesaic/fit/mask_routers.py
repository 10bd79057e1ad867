"""Trains OTP's mask routers: distillation from the unpruned model, Gumbel-Softmax, a share that is met.

Only the mask routers have gradients. They are trained layer by layer first (`layerwise`), and then, when
steps are asked for, through the whole model. Such a step reads some windows twice: without skipping (the teacher),
and with masks sampled for every token and layer. The loss is

    KL(teacher || student) a token, over the vocabulary  +  lambda * expected share of the expert activations

lambda is not given but found: a controller raises it while the share is above the target and lowers it below. The
start is the ratio rule at the target share, so that training has to improve on that rule and not to find it again. At
the end, and at times in between, the masks are made hard, the common `cost` is set so that the share is met, and the
KL on windows that were held back is measured; the best state seen is the result, the start included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from moesaic.errors import TrainingFailed
from moesaic.fit.layerwise import METRICS, Price, train_layers
from moesaic.fit.rules import calibrate, read
from moesaic.fit.text import batches
from moesaic.progress import SILENT, Progress
from moesaic.prune import Pruning, Routed, Threshold
from moesaic.prune.decide import THRESHOLD, decide
from moesaic.prune.otp import Otp
from moesaic.runtime.skipping import Routing, Skipping

States = dict[str, dict[str, Tensor]]
FIXED = ("cost", THRESHOLD)  # entries of a state that are not trained
ESTIMATORS = ("straight_through", "soft")


@dataclass(frozen=True)
class Training:
    """How the mask routers are trained. What is behind the defaults is in `docs/methods/otp.md`.

    Attributes:
        layer_steps: steps of `layerwise` training, which come first; 0 for none.
        metric: what those steps minimise: the change of a layer's output in its `"fisher"` form, which is a KL in
            nats, or its plain square, `"output"`.
        steps: steps of distillation from the outputs of the whole model; 0 for none.
        batch_tokens: tokens of a step.
        rate: learning rate of AdamW at its highest; warmed up over a tenth of the steps, then a cosine to zero.
        hot, cold: temperature of the Gumbel-Softmax at the start and at the end; it falls geometrically.
        noise: scale of the Gumbel noise at the start; it falls to zero with the steps, so that what is trained in
            the end is what runs.
        estimator: `"straight_through"`: hard masks forward, the gradient of the soft ones; `"soft"`: soft masks.
        warm_start: start from the ratio rule at the target share; else from the ratio 1/2.
        held_back: share of the windows that are not trained on, for choosing the best state.
        checks: how often the state is measured on these, the end included.
        seed: of the initial weights, the noise and the order of the windows.
    """

    layer_steps: int = 300
    metric: str = "fisher"
    steps: int = 0
    batch_tokens: int = 2048
    rate: float = 0.01
    hot: float = 2.0
    cold: float = 0.3
    noise: float = 1.0
    estimator: str = "straight_through"
    warm_start: bool = True
    held_back: float = 0.15
    checks: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {self.estimator!r}; give one of {ESTIMATORS}")
        if self.metric not in METRICS:
            raise ValueError(f"metric is {self.metric!r}; give one of {METRICS}")
        if self.steps < 0 or self.layer_steps < 0 or self.checks < 1 or not 0 < self.held_back < 1:
            raise ValueError("steps have to be 0 or more, checks 1 or more, held_back between 0 and 1")

    def at(self, step: int) -> tuple[float, float, float]:
        """Learning rate, temperature and noise of a step."""
        done = step / self.steps
        warm = min(1.0, (step + 1) / max(1, self.steps // 10))
        rate = self.rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        return rate, self.hot * (self.cold / self.hot) ** done, self.noise * (1 - done)


def train(
    model: PreTrainedModel,
    windows: Tensor,
    policy: Otp,
    target: float,
    training: Training,
    *,
    progress: Progress = SILENT,
) -> Pruning:
    """Train the mask routers of a model whose modules have gradients.

    Args:
        model: without a policy at work, inside `differentiable` when it is packed.
        windows: `[windows, length]` calibration tokens.
        policy: what to train.
        target: share of the expert activations that is to run.
        training: how.
        progress: told of every step.

    Raises:
        TrainingFailed: NaN before the first state was good.
        UsageError: a target that cannot be.
    """
    held = max(1, round(training.held_back * len(windows)))
    trained, kept_back = windows[held:], windows[:held]
    rule = calibrate(model, trained[: max(1, 16384 // windows.shape[1])], "threshold", Threshold(), target)
    run = _Run(model, policy, target, training, rule)
    run.check(kept_back, "start")
    if training.layer_steps:
        run.train_layers(trained, kept_back, progress)
    if training.steps and run.stopped is None:
        run.train(trained, kept_back, progress)
    return run.result(windows)


class _Run:
    """The state of a training run."""

    def __init__(self, model: PreTrainedModel, policy: Otp, target: float, training: Training, rule: Pruning) -> None:
        self.model, self.policy, self.target, self.training = model, policy, target, training
        self.rule, self.top_k = rule, rule.top_k
        self.said: dict[str, Any] = {}
        self.generator = torch.Generator().manual_seed(training.seed)
        self.states = _start(model, policy, rule, training, self.generator)
        self.masks = policy.masks(rule.top_k).to(model.device)
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, States, float] | None = None  # KL on the windows held back, state, its share
        self.stopped: str | None = None
        self.price = Price.of(0.0, target)

    def train_layers(self, windows: Tensor, held: Tensor, progress: Progress) -> None:
        """Each layer against its own output; the state becomes the best one."""
        said = train_layers(
            self.model,
            windows,
            self.policy,
            self.states,
            self.target,
            rule=self.rule,
            steps=self.training.layer_steps,
            rate=self.training.rate,
            metric=self.training.metric,
            progress=progress,
        )
        self.said["layers"] = said
        self.stopped = said["stopped"]
        self.check(held, "layers")

    def train(self, windows: Tensor, held: Tensor, progress: Progress) -> None:
        """Steps through the whole model from the best state so far, and the checks between them."""
        steps = self.training.steps
        kl, states, _ = self._best()
        self.states = {layer: {key: t.clone() for key, t in state.items()} for layer, state in states.items()}
        self.price = Price.of(kl, self.target)
        optimizer = torch.optim.AdamW(self._parameters(), lr=self.training.rate, weight_decay=0.0)
        every = max(1, steps // self.training.checks)
        progress.start("train", steps)
        for step, batch in zip(range(steps), self._batches(windows), strict=False):
            if not self._step(optimizer, step, batch):
                self.stopped = f"NaN in step {step + 1}; the best state until then was kept"
                return
            progress.advance(1)
            if (step + 1) % every == 0 or step + 1 == steps:
                self.check(held, f"step {step + 1}")

    def _best(self) -> tuple[float, States, float]:
        assert self.best is not None  # `check` has run
        return self.best

    def result(self, windows: Tensor) -> Pruning:
        """The best state, as a policy."""
        kl, states, reached = self._best()
        details = {
            "tokens": windows.numel(),
            "window": windows.shape[1],
            "training": dict(vars(self.training)),
            "kl_held_back": kl,
            "stopped": self.stopped,
            "history": self.history,
            **self.said,
        }
        return Pruning("otp", self.policy, self.top_k, self.target, reached, states, details)

    def _parameters(self) -> list[Tensor]:
        return [
            tensor.requires_grad_()
            for state in self.states.values()
            for key, tensor in state.items()
            if key not in FIXED
        ]

    def _batches(self, windows: Tensor) -> Iterator[Tensor]:
        """Batches without end, in a new order every time round."""
        while True:
            order = torch.randperm(len(windows), generator=self.generator)
            full = batches(windows[order], self.training.batch_tokens)
            yield from full[:-1] if len(full) > 1 else full

    def _step(self, optimizer: torch.optim.Optimizer, step: int, batch: Tensor) -> bool:
        """One step; False when the loss is not a number."""
        rate, temperature, noise = self.training.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        expected: dict[str, Tensor] = {}

        def routing(layer: str, routed: Routed) -> Tensor:
            logits = self.policy.logits(routed, self.states[layer])
            expected[layer] = (logits.softmax(dim=-1) @ self.masks).mean()
            return self._sample(logits, temperature, noise) @ self.masks

        with torch.no_grad():
            teacher = logits_of(self.model, batch)
        with _routing(self.model, routing):
            kl = divergence(teacher, logits_of(self.model, batch))
        share = torch.stack(list(expected.values())).mean()
        loss = kl + self.price.now(share.item()) * share
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters(), 1.0)
        if not (bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))):
            return False
        optimizer.step()
        self.history.append({"step": step + 1, "kl": kl.item(), "share": share.item(), "lambda": self.price.value})
        return True

    def _sample(self, logits: Tensor, temperature: float, noise: float) -> Tensor:
        """A mask for every token, as weights of the candidates. `[tokens, masks]`"""
        uniform = torch.rand(logits.shape, generator=self.generator).clamp(1e-9, 1 - 1e-7).to(logits.device)
        soft = functional.softmax((logits - noise * (-uniform.log()).log()) / temperature, dim=-1)
        if self.training.estimator == "soft":
            return soft
        hard = functional.one_hot(soft.argmax(dim=-1), logits.shape[-1]).to(soft.dtype)
        return hard + soft - soft.detach()

    def check(self, held: Tensor, when: str) -> None:
        """Harden the masks, meet the share, measure, and keep the state if it is the best.

        Raises:
            TrainingFailed: not a number, and nothing good to keep.
        """
        states = {layer: {key: t.detach().clone() for key, t in state.items()} for layer, state in self.states.items()}
        states, share = meet_share(self.model, self.policy, states, held, self.target)
        kl = hard_divergence(self.model, self.policy, states, held)
        if not math.isfinite(kl):
            if self.best is None:
                raise TrainingFailed(
                    "the model's outputs are NaN before training began: check the packed model with `moesaic evaluate`"
                )
            return
        self.history.append({"when": when, "held_back_kl": kl, "held_back_share": share})
        if self.best is None or kl < self.best[0]:
            self.best = (kl, states, share)


def _start(
    model: PreTrainedModel, policy: Otp, rule: Pruning, training: Training, generator: torch.Generator
) -> States:
    """Every layer's first state."""
    states: States = {}
    ratio = float(next(iter(rule.layers.values()))[THRESHOLD])
    for layer in rule.layers:
        hidden = _hidden_of(model, layer)
        state = policy.start(rule.top_k, hidden, generator)
        if training.warm_start:
            state["offset"] = torch.full((rule.top_k,), max(ratio, 1e-6)).log()
        state[THRESHOLD] = torch.tensor(0.5)
        states[layer] = {key: tensor.to(model.device) for key, tensor in state.items()}
    return states


def _hidden_of(model: PreTrainedModel, layer: str) -> int:
    module: Any = model.get_submodule(layer)
    if hasattr(module, "down"):
        return int(module.down.layout.rows)
    return int(module.down_proj.shape[2 if getattr(module, "is_transposed", False) else 1])


class _routing:  # noqa: N801  (used as `with _routing(...)`)
    """A routing at work for a while."""

    def __init__(self, model: PreTrainedModel, routing: Any) -> None:
        self._skipping = Skipping(model)
        self._skipping.routing = routing

    def __enter__(self) -> Skipping:
        return self._skipping

    def __exit__(self, *_: object) -> None:
        self._skipping.remove()


def logits_of(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Logits of all tokens but the last. `[tokens, vocabulary]` float32"""
    found = model(input_ids=batch.to(model.device), use_cache=False).logits[:, :-1]
    return found.reshape(-1, found.shape[-1]).float()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean `KL(teacher || student)` in nats a token, from logits `[tokens, vocabulary]`."""
    wanted, found = teacher.log_softmax(dim=-1), student.log_softmax(dim=-1)
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


@torch.no_grad()
def hard_divergence(
    model: PreTrainedModel, policy: Otp, states: Mapping[str, Mapping[str, Tensor]], windows: Tensor
) -> float:
    """KL of the model with hard masks from the model without, in nats a token."""
    total = 0.0
    for batch in batches(windows, 2048):
        teacher = logits_of(model, batch)
        with _routing(model, lambda layer, routed: decide(policy, routed, states[layer])):
            total += float(divergence(teacher, logits_of(model, batch))) * len(batch)
    return total / len(windows)


@torch.no_grad()
def meet_share(
    model: PreTrainedModel, policy: Otp, states: States, windows: Tensor, target: float, *, rounds: int = 3
) -> tuple[States, float]:
    """Set the common `cost` so that hard masks run the target share of these windows.

    The cost is found on the logits of one pass; since other masks make other hidden states, the share is then
    measured, and the aim moved by what it misses.

    Returns:
        The states with that cost, and the share reached.
    """
    best: tuple[float, States] | None = None
    asked, moved = target, False
    for _ in range(rounds):
        logits: list[Tensor] = []

        def routing(layer: str, routed: Routed, now: States = states, seen: list[Tensor] = logits) -> Tensor:
            seen.append(policy.logits(routed, now[layer]))
            return decide(policy, routed, now[layer])

        share = _hard_share(model, windows, routing)
        if best is None or abs(share - target) < abs(best[0] - target):
            best = (share, states)
        if abs(share - target) < 0.002:
            break
        asked += target - share if moved else 0.0
        moved = True
        cost = share_cost(torch.cat(logits), policy.masks(_places(states)).to(logits[0].device), asked)
        states = _with_cost(states, cost)
    share = _hard_share(model, windows, lambda layer, routed: decide(policy, routed, states[layer]))
    if best is None or abs(share - target) < abs(best[0] - target):
        best = (share, states)
    return best[1], best[0]


def share_cost(logits: Tensor, masks: Tensor, share: float) -> float:
    """What to add to the cost of an expert so that the most likely masks run that share. By bisection.

    Args:
        logits: `[tokens, masks]`.
        masks: `[masks, k]`.
        share: of the places.
    """
    counts = masks.sum(dim=-1)
    low, high = -50.0, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        ran = counts[(logits - middle * counts).argmax(dim=-1)].mean() / masks.shape[1]
        low, high = (middle, high) if float(ran) > share else (low, middle)
    return (low + high) / 2


def _places(states: States) -> int:
    return len(next(iter(states.values()))["slope"])


def _with_cost(states: States, cost: float) -> States:
    return {layer: {**state, "cost": state["cost"] + cost} for layer, state in states.items()}


def _hard_share(model: PreTrainedModel, windows: Tensor, routing: Routing) -> float:
    with _routing(model, routing) as skipping:
        skipping.count()
        read(model, windows)
        return skipping.share()
