"""Trains OTP's mask routers: distillation from the unpruned model, Gumbel-Softmax, a share that is met.

Only the mask routers have gradients. They are trained layer by layer first (`layerwise`), and then, when
steps are asked for, through the whole model. Such a step reads some windows twice: without skipping (the teacher),
and with masks sampled for every token and layer. The loss is

    KL(teacher || student) a token, over the vocabulary  +  lambda * expected share of the expert activations

lambda is not given but found: a controller raises it while the share is above the target and lowers it below. At the
start the error of a mask is taken to grow with the squared change of the weights. At the end, and at times in between,
the masks are made hard, the common `cost` is set so that the share is met, and the KL on windows that were held back is
measured; the best state seen is the result, the start included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from moesaic.errors import TrainingFailed
from moesaic.fit.hard_masks import HeldBack, States, divergence, logits_of, meet_share, routed_by
from moesaic.fit.layerwise import LOSSES, Price, train_layers
from moesaic.fit.recording import METRICS, Recording, record_layers
from moesaic.fit.rules import Recorded, check_target, record, thresholds
from moesaic.fit.text import batches
from moesaic.progress import SILENT, Progress
from moesaic.prune import Pruning, Routed, Threshold
from moesaic.prune.decide import THRESHOLD
from moesaic.prune.otp import Otp
from moesaic.runtime.skipping import expert_counts

FIXED = ("cost", THRESHOLD)  # entries of a state that are not trained
_RATIO_TOKENS = 16_384  # for the ratio of the start, where nothing is recorded
ESTIMATORS = ("straight_through", "soft")


@dataclass(frozen=True)
class Training:
    """How the mask routers are trained. What is behind the defaults is in `docs/methods/otp.md`.

    Attributes:
        layer_steps: steps of `layerwise` training, which come first; 0 for none.
        metric: what those steps minimise: the change of a layer's output in its `"fisher"` form, which is a KL in
            nats, or its plain square, `"output"`.
        loss: of those steps: `"regression"`, the estimate of every mask's error, or `"expected"`, the expected error at
            the target share; see `layerwise`.
        steps: steps of distillation from the outputs of the whole model; 0 for none.
        batch_tokens: tokens of a step.
        rate: learning rate of AdamW at its highest; warmed up over a tenth of the steps, then a cosine to zero.
        hot, cold: temperature of the Gumbel-Softmax at the start and at the end; it falls geometrically.
        noise: scale of the Gumbel noise at the start; it falls to zero with the steps, so that what is trained in
            the end is what runs.
        estimator: `"straight_through"`: hard masks forward, the gradient of the soft ones; `"soft"`: soft masks.
        warm_start: start from an error that grows with the squared change of the weights; else from one that is the
            same for every token.
        held_back: share of the windows that are not trained on, for choosing the best state.
        checks: how often the state is measured on these, the end included.
        seed: of the initial weights, the noise and the order of the windows.
    """

    layer_steps: int = 300
    metric: str = "fisher"
    loss: str = "regression"
    steps: int = 0
    batch_tokens: int = 2048
    rate: float = 0.005
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
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; give one of {LOSSES}")
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
    recording: Recording | None = None,
    progress: Progress = SILENT,
) -> Pruning:
    """Train the mask routers of a model whose modules have gradients.

    Args:
        model: without a policy at work, inside `differentiable` when it is packed.
        windows: `[windows, length]` calibration tokens.
        policy: what to train.
        target: share of the expert activations that is to run.
        training: how.
        recording: of `training_windows(windows, training)`, where there is one already; it spares a pass.
        progress: told of every step.

    Raises:
        TrainingFailed: NaN before the first state was good.
        UsageError: a target that cannot be.
    """
    trained, kept_back = training_windows(windows, training)
    with ExitStack() as stack:
        if training.layer_steps and recording is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="moesaic-")))
            recording = record_layers(model, trained, folder, metric=training.metric, progress=progress)
        if recording is not None:
            routing = recording.routing()
        else:
            routing = record(model, trained[: max(1, _RATIO_TOKENS // windows.shape[1])])
        run = _Run(HeldBack(model, kept_back), policy, target, training, _ratio_rule(routing, target))
        run.check("start")
        if training.layer_steps:
            assert recording is not None
            run.train_layers(recording, progress)
        if training.steps and run.stopped is None:
            run.train(trained, progress)
        return run.result(windows)


def retarget(model: PreTrainedModel, pruning: Pruning, windows: Tensor, target: float) -> Pruning:
    """Trained mask routers at another share: what a mask costs stays, the price is set anew.

    Right for states that were trained by regression alone, in which no share took part.

    Args:
        model: without a policy at work.
        pruning: of this model, with the policy otp.
        windows: to meet the share on.
        target: the other share.

    Raises:
        UsageError: a target that cannot be.
    """
    check_target(target, pruning.top_k)
    policy = pruning.policy
    assert isinstance(policy, Otp)
    states: States = {layer: dict(state) for layer, state in pruning.layers.items()}
    states, reached = meet_share(model, policy, states, windows, target)
    return replace(pruning, target=target, reached=reached, layers=states)


def training_windows(windows: Tensor, training: Training) -> tuple[Tensor, Tensor]:
    """The windows to train on, and those that are held back."""
    held = max(1, round(training.held_back * len(windows)))
    return windows[held:], windows[:held]


def _ratio_rule(routing: Recorded, target: float) -> Pruning:
    """The ratio rule that runs that share of a recorded routing: where training starts."""
    top_k = next(iter(routing.values()))[0].weights.shape[1]
    check_target(target, top_k)
    policy = Threshold()
    return Pruning("threshold", policy, top_k, target, target, thresholds(policy, routing, target))


class _Run:
    """The state of a training run."""

    def __init__(self, held: HeldBack, policy: Otp, target: float, training: Training, rule: Pruning) -> None:
        self.held, self.model = held, held.model
        self.policy, self.target, self.training = policy, target, training
        self.rule, self.top_k = rule, rule.top_k
        self.said: dict[str, Any] = {}
        self.generator = torch.Generator().manual_seed(training.seed)
        self.states = _start(self.model, policy, rule, training, self.generator)
        self.masks = policy.masks(rule.top_k).to(self.model.device)
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, States, float] | None = None  # KL on the windows held back, state, its share
        self.stopped: str | None = None
        self.price = Price.of(0.0, target)

    def train_layers(self, recording: Recording, progress: Progress) -> None:
        """Each layer on what was recorded of it; the state becomes the best one."""
        said = train_layers(
            self.model,
            recording,
            self.policy,
            self.states,
            self.target,
            rule=self.rule,
            loss=self.training.loss,
            steps=self.training.layer_steps,
            rate=self.training.rate,
            progress=progress,
        )
        self.said["layers"] = said
        self.stopped = said["stopped"]
        self.check("layers")

    def train(self, windows: Tensor, progress: Progress) -> None:
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
                self.check(f"step {step + 1}")

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
        with routed_by(self.model, routing):
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

    def check(self, when: str) -> None:
        """Harden the masks, meet the share, measure, and keep the state if it is the best.

        Raises:
            TrainingFailed: not a number, and nothing good to keep.
        """
        states = {layer: {key: t.detach().clone() for key, t in state.items()} for layer, state in self.states.items()}
        states, share = meet_share(self.model, self.policy, states, self.held.windows, self.target)
        kl = self.held.divergence(self.policy, states)
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
    counts = expert_counts(model)
    for layer in rule.layers:
        state = policy.start(rule.top_k, _hidden_of(model, layer), generator, experts=counts[layer])
        if not training.warm_start:
            state["slope"] = torch.zeros_like(state["slope"])
        state[THRESHOLD] = torch.tensor(0.5)
        states[layer] = {key: tensor.to(model.device) for key, tensor in state.items()}
    return states


def _hidden_of(model: PreTrainedModel, layer: str) -> int:
    module: Any = model.get_submodule(layer)
    if hasattr(module, "down"):
        return int(module.down.layout.rows)
    return int(module.down_proj.shape[2 if getattr(module, "is_transposed", False) else 1])
