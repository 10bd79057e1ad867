"""One model at one number of bits: its policies, fitted on calibration text and measured on held-out text."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.errors import MoesaicError
from moesaic.evaluate.quality import mean_with_interval
from moesaic.fit.mask_routers import Training, retarget, train, training_windows
from moesaic.fit.recording import Recording, record_layers
from moesaic.fit.rules import Recorded, record, thresholds
from moesaic.fit.text import batches
from moesaic.prune import Policy, Pruning
from moesaic.runtime.skipping import attach, detach

from .cases import Case

RULE_TOKENS = 8_192  # a quantile needs no more
_BATCH_TOKENS = 2048


class Held:
    """Held-out windows with the unpruned model's answers.

    Attributes:
        windows: `[windows, length]`.
        perplexity: of the unpruned model.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor) -> None:
        self.windows = windows
        with torch.inference_mode():
            self._teacher = [_log_probabilities(model, batch) for batch in batches(windows, _BATCH_TOKENS)]
        losses = [
            _losses(each, batch) for each, batch in zip(self._teacher, batches(windows, _BATCH_TOKENS), strict=True)
        ]
        self.perplexity = math.exp(float(torch.cat(losses).mean()) / (windows.shape[1] - 1))

    @torch.inference_mode()
    def measure(self, model: PreTrainedModel, pruning: Pruning) -> dict[str, Any]:
        """KL of every window, perplexity, and the share that ran."""
        skipping = attach(model, pruning)
        skipping.count()
        kl, losses = [], []
        for batch, wanted in zip(batches(self.windows, _BATCH_TOKENS), self._teacher, strict=True):
            found = _log_probabilities(model, batch)
            kl += (wanted.exp() * (wanted - found)).sum(dim=(-2, -1)).tolist()
            losses += _losses(found, batch).tolist()
        shares, share = skipping.shares(), skipping.share()
        detach(model)
        counts = [self.windows.shape[1] - 1] * len(kl)
        mean, loss = mean_with_interval(kl, counts), mean_with_interval(losses, counts)
        return {
            "share": share,
            "kl": mean.value,
            "kl_interval": [mean.low, mean.high],
            "perplexity": math.exp(loss.value),
            "perplexity_interval": [math.exp(loss.low), math.exp(loss.high)],
            "share_of_layers": list(shares.values()),
            "kl_windows": [each / counts[0] for each in kl],
        }


def _log_probabilities(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Of all tokens but the last. `[windows, length - 1, vocabulary]`"""
    return model(input_ids=batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)


def _losses(log_probabilities: Tensor, batch: Tensor) -> Tensor:
    """Sum of the negative log likelihoods of each window. `[windows]`"""
    return -log_probabilities.gather(-1, batch[:, 1:, None]).sum(dim=(-2, -1))


@dataclass
class Fitted:
    """Fits policies to one model; what the fits share is found once.

    Attributes:
        model: in float32, inside `differentiable` when it is packed.
        windows: calibration tokens.
        work: where recordings may lie while this is in use.
    """

    model: PreTrainedModel
    windows: Tensor
    work: Path

    def __post_init__(self) -> None:
        self._recordings: dict[str, tuple[Recording, TemporaryDirectory[str]]] = {}
        self._trained: dict[str, Pruning] = {}
        self.seconds: dict[str, float] = {}

    @cached_property
    def _with_attention(self) -> Recorded:
        few = self.windows[: max(2, RULE_TOKENS // self.windows.shape[1])]
        return record(self.model, few, ("sequences", "attention"))

    @property
    def top_k(self) -> int:
        """Experts of a token."""
        return next(iter(self._with_attention.values()))[0].weights.shape[1]

    def rule(self, name: str, policy: Policy, target: float) -> Pruning:
        """A rule with the thresholds that run the share on the routing of the unpruned model."""
        states = thresholds(policy, self._with_attention, target)
        return Pruning(name, policy, self.top_k, target, target, states)

    def mask_routers(self, case: Case) -> Pruning:
        """Mask routers, trained; those that no share takes part in are trained once for all shares."""
        assert case.training is not None
        shareless = case.training.layer_steps and not case.training.steps and case.training.loss == "regression"
        known = self._trained.get(f"{case.policy}{case.training}")
        if known is not None:
            return retarget(self.model, known, training_windows(self.windows, case.training)[1], case.target)
        found = self._train(case)
        if shareless:
            self._trained[f"{case.policy}{case.training}"] = found
        return found

    def _train(self, case: Case) -> Pruning:
        assert case.training is not None
        recording = self._recording(case.training) if case.training.layer_steps else None
        return train(
            self.model,
            self.windows,
            case.policy,  # type: ignore[arg-type]
            case.target,
            case.training,
            recording=recording,
        )

    def _recording(self, training: Training) -> Recording:
        if training.metric not in self._recordings:
            folder = TemporaryDirectory(dir=self.work, prefix="recording-")
            windows = training_windows(self.windows, training)[0]
            start = time.process_time()
            made = record_layers(self.model, windows, Path(folder.name), metric=training.metric)
            self.seconds[training.metric] = time.process_time() - start
            self._recordings[training.metric] = made, folder
        return self._recordings[training.metric][0]

    def row(self, case: Case, held: Held) -> dict[str, Any]:
        """Fit and measure one case; a case that cannot be is a row with the reason.

        `seconds` is processor time of the fit; what is recorded or trained before, for another row, is not in it.
        """
        start = time.process_time()
        try:
            if case.training is None:
                pruning = self.rule(case.name, case.policy, case.target)
            else:
                self._recording(case.training) if case.training.layer_steps else None
                start = time.process_time()
                pruning = self.mask_routers(case)
        except MoesaicError as error:
            return {"case": case.name, "target": case.target, "failed": str(error)}
        seconds = time.process_time() - start
        said = {key: pruning.details[key] for key in ("kl_held_back", "stopped") if key in pruning.details}
        return {"case": case.name, "target": case.target, "seconds": seconds, **said} | held.measure(
            self.model, pruning
        )
