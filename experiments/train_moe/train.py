"""The training loop: resumable at any step, deterministic by seed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from .data import Batch, TrainingOrder, windows
from .evaluate import Streams, evaluate, unigram_log_probabilities
from .model import compute_losses, router_weights
from .recipe import Recipe

MOMENTS = ("step", "exp_avg", "exp_avg_sq")

ValidLoss = Callable[[PreTrainedModel], float]


class BatchOrder(Protocol):
    """What is trained on: the batch of every step."""

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""

    def batch(self, step: int) -> Batch:
        """Inputs of the update that follows `step` finished ones."""


@dataclass(frozen=True)
class Workspace:
    """Where a run keeps its files."""

    root: Path

    @property
    def tokenizer(self) -> Path:
        """Folder of the trained tokenizer."""
        return self.root / "tokenizer"

    @property
    def tokens(self) -> Path:
        """Tokenised corpus."""
        return self.root / "tokens.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Weights, optimizer state and step of the last checkpoint."""
        return self.root / "checkpoint.safetensors"

    @property
    def log(self) -> Path:
        """Loss log, one JSON object a line."""
        return self.root / "log.jsonl"

    @property
    def metrics(self) -> Path:
        """Held-out results."""
        return self.root / "metrics.json"

    @property
    def export(self) -> Path:
        """The finished model in Hugging Face layout."""
        return self.root / "export"

    def routers(self, step: int) -> Path:
        """Router snapshot after `step` updates."""
        return self.root / "routers" / f"step_{step:06d}.safetensors"


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that `path` holds either the old or the complete new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, metadata)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def make_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay, fused=True
    )


def save_checkpoint(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.AdamW, step: int, recipe: Recipe
) -> None:
    """Store weights and optimizer state after `step` updates in one file."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for moment in MOMENTS:
            if parameter in optimizer.state:  # else an expert that no token has reached yet
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    state = {"step": step, "recipe": recipe.fingerprint()}
    write_tensors(path, tensors, {"state": json.dumps(state)})


def load_checkpoint(path: Path, model: PreTrainedModel, optimizer: torch.optim.AdamW, recipe: Recipe) -> int:
    """Restore what `save_checkpoint` stored and return the number of updates made."""
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        if state["recipe"] != recipe.fingerprint():
            raise ValueError(f"{path} belongs to another recipe; choose another work folder")
        stored = set(file.keys())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model/{name}"))
                if f"{MOMENTS[0]}/{name}" in stored:
                    optimizer.state[parameter] = {m: file.get_tensor(f"{m}/{name}").clone() for m in MOMENTS}
    return state["step"]


def load_weights(path: Path, model: PreTrainedModel) -> None:
    """Start from the weights of another run's checkpoint, without its optimizer."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model/{name}"))


def snapshot_steps(steps: int) -> set[int]:
    """Updates after which routers are kept: none, the powers of two, and all."""
    return {0, steps} | {2**i for i in range(steps.bit_length()) if 2**i <= steps}


def _keep_log_until(path: Path, step: int) -> None:
    """Drop log lines of updates that a resumed run makes again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


def _append_log(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)


def _update(model: PreTrainedModel, optimizer: torch.optim.AdamW, order: BatchOrder, step: int) -> dict[str, Any]:
    """One optimizer update; returns its log entry."""
    recipe = order.recipe
    torch.manual_seed(recipe.seed * 1_000_003 + step + 1)
    rate = recipe.learning_rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    losses = compute_losses(model, order.batch(step))
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    total, language = losses.total.item(), losses.language.item()
    return {"step": step + 1, "loss": language, "total_loss": total, "grad_norm": norm.item(), "lr": rate}


def fit(
    model: PreTrainedModel, order: BatchOrder, space: Workspace, valid_loss: ValidLoss, stop_after: int | None = None
) -> bool:
    """Train on the batches of `order` to its recipe's last step, going on from a checkpoint if there is one.

    `valid_loss` is called every `valid_every` steps. `stop_after` ends the run after that many updates without a
    checkpoint, as a kill would. Returns whether the last step was reached.
    """
    recipe = order.recipe
    optimizer = make_optimizer(model, recipe)
    step = 0
    if space.checkpoint.exists():
        step = load_checkpoint(space.checkpoint, model, optimizer, recipe)
    else:
        write_tensors(space.routers(0), router_weights(model))
    _keep_log_until(space.log, step)
    snapshots = snapshot_steps(recipe.steps)
    model.train()
    begun, first = time.monotonic(), step
    while step < recipe.steps:
        entry = _update(model, optimizer, order, step)
        step += 1
        if step in snapshots:
            write_tensors(space.routers(step), router_weights(model))
        if step % recipe.valid_every == 0 and step < recipe.steps:
            entry["valid_loss"] = valid_loss(model)
        if step % recipe.log_every == 0 or "valid_loss" in entry or step == recipe.steps:
            speed = (step - first) * recipe.batch_size * recipe.seq_len / (time.monotonic() - begun)
            _append_log(space.log, {**entry, "tokens_per_second": round(speed, 1)})
        if stop_after is not None and step >= stop_after:
            return step == recipe.steps
        if step % recipe.checkpoint_every == 0 or step == recipe.steps:
            save_checkpoint(space.checkpoint, model, optimizer, step, recipe)
    return True


def train(
    model: PreTrainedModel, streams: Streams, recipe: Recipe, space: Workspace, stop_after: int | None = None
) -> bool:
    """Train on the windows of the recipe's domains; see `fit`."""
    rows = torch.cat([windows(streams[f"{domain}.train"], recipe.seq_len) for domain in recipe.domains])
    unigram = unigram_log_probabilities(streams, recipe)

    def valid_loss(model: PreTrainedModel) -> float:
        found = evaluate(model, streams, recipe, "valid", unigram, limit=recipe.valid_windows)
        return found["overall"]["loss"]

    return fit(model, TrainingOrder(rows, recipe), space, valid_loss, stop_after)
