"""From a packed folder and a calibration text to a policy in the folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.errors import UsageError
from moesaic.fit.differentiable import dequantized_bytes, differentiable
from moesaic.fit.mask_routers import Training, train
from moesaic.fit.rules import calibrate, check_target, record
from moesaic.fit.text import token_windows, tokenized
from moesaic.packing.manifest import read_manifest
from moesaic.packing.pruning import write_pruning
from moesaic.progress import SILENT, Progress
from moesaic.prune import POLICIES, Policy, Pruning
from moesaic.registry import look_up
from moesaic.runtime.hf import load, open_tokenizer
from moesaic.text import bundled_calibration_text, read_text

LARGEST_WINDOW = 512  # tokens; a step of training holds the activations of a few windows
FLOAT_BUDGET = 1_500_000_000  # bytes of dequantized weights kept in training
LEAST_WINDOWS, LEAST_TO_TRAIN = 2, 16


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit_policy`.

    Attributes:
        policy: a name in `prune.POLICIES`.
        target: share of the expert activations that is to run, above 1/k and at most 1.
        knobs: fields of the policy, such as `{"protect": 0.05}` for `odp`.
        window: tokens of a window; None for 512, or what the model can.
        max_tokens: of the calibration text, chosen by chance.
        training: how mask routers are trained; None for `Training()`, with the metric `"output"` when the dequantized
            weights would not fit into 1.5 GB.
        seed: of the choice of text.
        trust_remote_code: as for `load`.
    """

    policy: str = "otp"
    target: float = 0.75
    knobs: dict[str, Any] = field(default_factory=dict)
    window: int | None = None
    max_tokens: int = 65_536
    training: Training | None = None
    seed: int = 0
    trust_remote_code: bool = False

    def make_policy(self) -> Policy:
        """The policy of that name with those knobs.

        Raises:
            UnknownName: with the nearest.
            UsageError: a knob that it does not have, or a value that cannot be.
        """
        made = look_up(self.policy, POLICIES, kind="skipping policy", group="policies")
        known = {each.name for each in dataclasses.fields(made)} if dataclasses.is_dataclass(made) else set(self.knobs)
        if not set(self.knobs) <= known:
            raise UsageError(f"{min(set(self.knobs) - known)} means nothing to the policy {self.policy}")
        try:
            policy: Policy = made(**self.knobs)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--policy {self.policy}: {error}") from None
        return policy


def fit_policy(
    folder: Path, calibration: Path | None = None, *, options: FitOptions | None = None, progress: Progress = SILENT
) -> Pruning:
    """Calibrate or train a skipping policy for a packed model, and save it in the folder.

    The packed model itself is not changed. What was there before is replaced when the new policy is complete.

    Args:
        folder: written by `compress`.
        calibration: a text; None for the one that comes with the package.
        options: what to do.
        progress: told how far it is.

    Raises:
        UsageError: an unknown policy or knob, or a target that cannot be.
        InvalidText: too short a text.
        TrainingFailed: NaN before there was a good state.
        MoesaicError: a damaged folder; see `moesaic.errors`.
    """
    options = options or FitOptions()
    policy = options.make_policy()
    if not 0 < options.target <= 1:
        raise UsageError(f"--target {options.target}: give the share of the expert activations that is to run, up to 1")
    manifest = read_manifest(folder)
    text = bundled_calibration_text() if calibration is None else read_text(calibration)
    tokenizer = open_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    model = load(
        folder, dtype=torch.float32, trust_remote_code=options.trust_remote_code, pruning=False
    ).requires_grad_(False)
    windows = _windows(model, tokenized(tokenizer, text), options, trained="training" in policy.needs)
    pruning = fit(model, windows, policy, options, progress)
    write_pruning(folder, pruning, manifest)
    return pruning


def fit(
    model: PreTrainedModel, windows: Tensor, policy: Policy, options: FitOptions, progress: Progress = SILENT
) -> Pruning:
    """The same for a model that is loaded, in float32, on windows `[windows, length]` of tokens."""
    top_k = next(iter(record(model, windows[:1, :2]).values()))[0].weights.shape[1]
    check_target(options.target, top_k)
    if "training" not in policy.needs:
        return calibrate(model, windows, options.policy, policy, options.target, progress=progress)
    training = options.training or _training(model)
    with differentiable(model, FLOAT_BUDGET):
        return train(model, windows, policy, options.target, training, progress=progress)  # type: ignore[arg-type]


def _training(model: PreTrainedModel) -> Training:
    """With gradients through the model where it fits into memory dequantized, else without."""
    return Training() if dequantized_bytes(model) <= FLOAT_BUDGET else Training(metric="output")


def _windows(model: PreTrainedModel, tokens: list[int], options: FitOptions, *, trained: bool) -> Tensor:
    possible = getattr(model.config, "max_position_embeddings", None) or LARGEST_WINDOW
    length = options.window or min(LARGEST_WINDOW, possible)
    if not 2 <= length <= possible:
        raise UsageError(f"--window {length}: give 2 to {possible} tokens, which is what the model can read")
    return token_windows(
        tokens,
        length=length,
        limit=options.max_tokens,
        least=LEAST_TO_TRAIN if trained else LEAST_WINDOWS,
        seed=options.seed,
        vocabulary=model.get_input_embeddings().num_embeddings,
    )
