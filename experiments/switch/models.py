"""The models of the experiment: one pretrained by span corruption, several fine-tuned from it on the task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.train_moe.__main__ import run as pretrain
from experiments.train_moe.export import export_model
from experiments.train_moe.model import build_model, token_losses
from experiments.train_moe.train import Workspace, fit, load_weights
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerFast

from .settings import Settings
from .task import IGNORED, Item, TaskOrder, encode, encoded_batch, even_sample, held_out_pairs, make_batch, read_items

TEST_SEED = 7  # of the gaps of held-out sentences
BATCH = 128  # sentences measured at a time


@dataclass(frozen=True)
class Run:
    """A run's settings, corpus and work folder."""

    settings: Settings
    corpus: Path
    root: Path

    @property
    def pretrained(self) -> Workspace:
        """Files of the pretraining."""
        return Workspace(self.root / "pretrain")

    def finetuned(self, seed: int) -> Workspace:
        """Files of one fine-tuning."""
        return Workspace(self.root / f"finetune_{seed}")

    @property
    def seeds(self) -> range:
        """Fine-tuning seeds."""
        return range(1, self.settings.finetuned + 1)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The pretrained model's tokenizer."""
        return PreTrainedTokenizerFast.from_pretrained(self.pretrained.tokenizer)

    def items(self, split: str) -> list[Item]:
        """Sentences of a split."""
        recipe = self.settings.pretrain
        return read_items(self.corpus, recipe.domains, split, self.settings.words, recipe.max_chars)

    @cached_property
    def test(self) -> list[Item]:
        """The sentences that everything is measured on, their domains mixed."""
        items = even_sample(self.items("test"), self.settings.scored)
        return [items[at] for at in np.random.default_rng(0).permutation(len(items))]


def ensure_pretrained(run: Run) -> None:
    """Pretrain unless that is finished."""
    if not run.pretrained.metrics.exists():
        pretrain(run.settings.pretrain, run.corpus, run.pretrained)


def ensure_finetuned(run: Run, seed: int) -> None:
    """Fine-tune from the pretrained weights unless that is finished; goes on from a checkpoint if there is one.

    The export is float32 and has the pretrained routers beside it, so that the norm change is that of fine-tuning.
    """
    space, recipe = run.finetuned(seed), run.settings.finetune(seed)
    if space.metrics.exists():
        return
    torch.set_num_threads(recipe.threads)
    space.root.mkdir(parents=True, exist_ok=True)
    tokenizer = run.tokenizer
    model = build_model(recipe, tokenizer)
    load_weights(run.pretrained.checkpoint, model)
    valid = even_sample(run.items("valid"), recipe.valid_windows)
    before = mean_loss(model, tokenizer, valid)
    fit(model, TaskOrder(run.items("train"), tokenizer, recipe), space, lambda m: mean_loss(m, tokenizer, valid))
    export_model(model, tokenizer, space, torch.float32)
    metrics = {"steps": recipe.steps, "valid_loss_before": before, "valid_loss": mean_loss(model, tokenizer, valid)}
    space.metrics.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def open_finetuned(run: Run, seed: int) -> PreTrainedModel:
    """The exported fine-tuned model, ready to be measured."""
    return AutoModelForSeq2SeqLM.from_pretrained(run.finetuned(seed).export, dtype=torch.float32).eval()


def open_pretrained(run: Run) -> PreTrainedModel:
    """The pretrained model as fine-tuning starts from it."""
    model = build_model(run.settings.pretrain, run.tokenizer)
    load_weights(run.pretrained.checkpoint, model)
    return model.eval()


@torch.inference_mode()
def item_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> list[float]:
    """Mean negative log-likelihood of the tokens of each sentence's output, teacher-forced; nats."""
    pairs = held_out_pairs(items, TEST_SEED)
    by_length = sorted(range(len(items)), key=lambda at: len(pairs[at].source))
    found = [0.0] * len(items)
    for start in range(0, len(items), BATCH):
        chosen = by_length[start : start + BATCH]
        batch = encoded_batch(tokenizer, [pairs[at] for at in chosen])
        real = batch["labels"] != IGNORED
        losses = token_losses(model, batch).view(real.shape).double()
        means = (losses * real).sum(dim=1) / real.sum(dim=1)
        for at, mean in zip(chosen, means.tolist(), strict=True):
            found[at] = mean
    return found


def mean_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> float:
    """Mean of `item_losses`; the model goes back to training afterwards if it was in training."""
    training = model.training
    losses = item_losses(model.eval(), tokenizer, items)
    model.train(training)
    return sum(losses) / len(losses)


@torch.inference_mode()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], new_tokens: int
) -> list[str]:
    """The greedy output for each sentence with its gap."""
    sources = encode(tokenizer, [pair.source for pair in held_out_pairs(items, TEST_SEED)])
    outputs: list[str] = []
    for start in range(0, len(items), BATCH):
        rows = sources[start : start + BATCH]
        batch: dict[str, Any] = make_batch(rows, rows, tokenizer.pad_token_id)
        del batch["labels"]
        ids = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False, num_beams=1)
        outputs += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return outputs
