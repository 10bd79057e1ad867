"""The sizes of the experiment: as reported, and a small form of it that only shows that everything works."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.train_moe.recipe import Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "train_moe" / "recipes"


@dataclass(frozen=True)
class Table:
    """One table: a quantizer, two widths, and averages between them."""

    quantizer: str
    levels: tuple[int, int]
    bits: tuple[float, ...]


# The paper's widths with both quantizers, and one bit less, where a small model has more to lose.
HQQ = Table("hqq", (2, 3), (2.0, 2.125, 2.25, 2.5, 2.75, 2.875, 3.0))
HQQ_LOW = Table("hqq", (1, 2), (1.0, 1.125, 1.25, 1.5, 1.75, 1.875, 2.0))
GPTQ = Table("gptq", (2, 3), HQQ.bits)
GPTQ_LOW = Table("gptq", (1, 2), HQQ_LOW.bits)


@dataclass(frozen=True)
class Settings:
    """What a run is made of.

    Attributes:
        recipe: file of the pretraining recipe; its domains are those of the task too.
        pretraining: fields of that recipe that are replaced.
        finetuning: fields of the recipe that are replaced for fine-tuning.
        finetuned: how many models are fine-tuned from the pretrained one, with seeds 1, 2, ...
        words: shortest and longest sentence of the task, in words.
        scored: test sentences whose loss is measured.
        generated: the first of them whose output is generated too, and scored by ROUGE-2.
        counted: training sentences that experts' inputs are counted on.
        new_tokens: most tokens of a generated output.
        tables: what is measured, by title.
        random_plans: random allocations at each width.
        truth: quantizer and width that every expert is rounded with alone.
        draws: bootstrap resamples of every interval.
    """

    recipe: Path = RECIPES / "switch_16.json"
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    finetuning: Mapping[str, Any] = field(default_factory=dict)
    finetuned: int = 3
    words: tuple[int, int] = (6, 12)
    generated: int = 240
    scored: int = 400
    counted: int = 1536
    new_tokens: int = 14
    tables: Mapping[str, Table] = field(
        default_factory=lambda: {
            "HQQ, 2 and 3 bits": HQQ,
            "HQQ, 1 and 2 bits": HQQ_LOW,
            "GPTQ, 2 and 3 bits": GPTQ,
            "GPTQ, 1 and 2 bits": GPTQ_LOW,
        }
    )
    random_plans: int = 3
    truth: tuple[str, int] = ("hqq", 1)
    draws: int = 1000

    @property
    def pretrain(self) -> Recipe:
        """Recipe of the pretraining."""
        return load_recipe(self.recipe, **self.pretraining)

    def finetune(self, seed: int) -> Recipe:
        """Recipe of the fine-tuning with one seed; the models differ in the order of sentences and words."""
        return dataclasses.replace(self.pretrain, seed=seed, **self.finetuning)


FULL = Settings(
    finetuning={
        "steps": 480,
        "warmup_steps": 30,
        "batch_size": 32,
        "lr": 0.002,
        "min_lr": 0.0001,
        "weight_decay": 0.01,
        "valid_every": 240,
        "valid_windows": 96,
        "log_every": 20,
        "checkpoint_every": 120,
    }
)
QUICK = Settings(
    pretraining={
        "config": {
            "d_model": 32,
            "d_ff": 64,
            "d_kv": 16,
            "num_heads": 2,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_experts": 8,
            "expert_capacity": 4096,
            "dropout_rate": 0.0,
            "router_aux_loss_coef": 0.01,
            "router_z_loss_coef": 0.001,
        },
        "domains": ["text"],
        "vocab_size": 512,
        "seq_len": 64,
        "batch_size": 16,
        "steps": 60,
        "warmup_steps": 5,
        "lr": 0.01,
        "valid_every": 50,
        "valid_windows": 8,
    },
    finetuning={"steps": 60, "warmup_steps": 5, "lr": 0.005, "weight_decay": 0.01, "valid_windows": 32},
    finetuned=2,
    generated=48,
    scored=96,
    counted=256,
    new_tokens=12,
    tables={"HQQ": Table("hqq", (1, 3), (1.0, 2.0, 3.0))},
    random_plans=2,
    draws=200,
)
