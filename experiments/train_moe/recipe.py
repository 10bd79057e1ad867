"""The recipe of one training run: a JSON file read into a dataclass."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL_TYPES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "switch_transformers")

# Fields that older checkpoints do not know: they count only when they are set.
LATER_FIELDS = ("router_std", "residual_scale", "copying_attention")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run, apart from the corpus.

    `config` holds the keys of the transformers config of `model_type`; token ids and the vocabulary size
    come from the tokenizer. `domains` names the corpus files. `max_chars` cuts every file (for small tests),
    `valid_windows` limits the validation during training, `noise_density` and `mean_span` are those of T5.
    `router_std`, `residual_scale` and `copying_attention` change how the weights are drawn (see `build_model`).
    """

    model_type: str
    config: dict[str, Any]
    domains: tuple[str, ...]
    vocab_size: int
    seq_len: int
    batch_size: int
    steps: int
    warmup_steps: int
    lr: float
    min_lr: float
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    seed: int = 0
    threads: int = 2
    experts_implementation: str | None = None
    checkpoint_every: int = 100
    log_every: int = 10
    valid_every: int = 200
    valid_windows: int = 32
    noise_density: float = 0.15
    mean_span: float = 3.0
    max_chars: int | None = None
    router_std: float | None = None
    residual_scale: float | None = None
    copying_attention: float | None = None

    def __post_init__(self) -> None:
        """Reject a recipe that cannot be trained."""
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"model_type {self.model_type!r} is none of {', '.join(MODEL_TYPES)}")
        positive = (
            "vocab_size",
            "seq_len",
            "batch_size",
            "steps",
            "checkpoint_every",
            "log_every",
            "valid_every",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not self.domains:
            raise ValueError("domains is empty")
        for name in ("vocab_size", "pad_token_id", "eos_token_id", "bos_token_id"):
            if name in self.config:
                raise ValueError(f"{name} does not belong in config: the tokenizer sets it")

    @property
    def seq2seq(self) -> bool:
        """Whether the model is an encoder-decoder, trained on span corruption."""
        return self.model_type == "switch_transformers"

    def learning_rate(self, step: int) -> float:
        """Learning rate of the update that follows `step` finished ones: warm-up, then a cosine."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * progress))

    def fingerprint(self) -> str:
        """Hash of the fields that must not change between a checkpoint and its resumption."""
        fields = dataclasses.asdict(self)
        for name in ("checkpoint_every", "log_every", "valid_every", "valid_windows", "threads"):
            del fields[name]
        for name in LATER_FIELDS:
            if fields[name] is None:
                del fields[name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def load_recipe(path: Path, **overrides: Any) -> Recipe:
    """Read a recipe file; unknown and missing keys are errors."""
    values = {**json.loads(path.read_text(encoding="utf-8")), **overrides}
    fields = dataclasses.fields(Recipe)
    unknown = sorted(set(values) - {field.name for field in fields})
    if unknown:
        raise ValueError(f"unknown keys in {path}: {', '.join(unknown)}")
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if missing:
        raise ValueError(f"missing keys in {path}: {', '.join(missing)}")
    values["domains"] = tuple(values["domains"])
    return Recipe(**values)
