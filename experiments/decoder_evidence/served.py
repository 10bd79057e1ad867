"""What each expert serves: how often, which tokens, of which domain, and how strongly it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from moesaic.checkpoint.reader import Checkpoint
from moesaic.runtime.hf import open_model

from ..held_out import Blocks


@dataclass
class Served:
    """Sums over the tokens that chose each of one layer's `E` experts.

    Attributes:
        count: `[E]` tokens.
        mass: `[E]` sum of the routing weights as they are applied.
        surprise: `[E]` sum of -log of the unigram frequency of the token at the place, nats.
        output: `[E]` sum of the l2 norm of the expert's output.
        weighted: `[E]` the same, times the routing weight.
        domains: `[E, domains]` tokens of each domain.
    """

    count: Tensor
    mass: Tensor
    surprise: Tensor
    output: Tensor
    weighted: Tensor
    domains: Tensor

    @classmethod
    def none(cls, experts: int, domains: int) -> Served:
        """Nothing seen yet."""
        return cls(*(torch.zeros(experts, dtype=torch.float64) for _ in range(5)), torch.zeros(experts, domains))

    def values(self, tokens: int) -> dict[str, list[float]]:
        """Measure -> one number an expert; NaN where an expert that served no token has none."""
        share = self.domains / self.domains.sum(dim=1, keepdim=True)
        entropy = -(share * share.clamp(min=1e-30).log()).sum(dim=1)
        found = {
            "selection count": self.count,
            "routing weight": self.mass / tokens,
            "weight when chosen": self.mass / self.count,
            "token rarity": self.surprise / self.count,
            "output norm": self.output / self.count,
            "weighted output norm": self.weighted / self.count,
        }
        if self.domains.shape[1] > 1:
            found |= {"largest domain share": share.amax(dim=1), "domain entropy": entropy}
        return {name: value.tolist() for name, value in found.items()}


@torch.no_grad()
def observe(folder: Path, blocks: Blocks, unigram: Tensor, batch: int = 8) -> dict[str, Served]:
    """Run the model over text and watch its experts.

    Args:
        folder: the checkpoint.
        blocks: the text, labelled by domain.
        unigram: `[vocabulary]` log probability of every token.
        batch: blocks at a time.
    """
    layers = Checkpoint.open(folder).layers
    model = open_model(folder, dtype=torch.float32)
    names = list(dict.fromkeys(blocks.sources))
    labels = torch.tensor([names.index(source) for source in blocks.sources])
    found = {layer.name: Served.none(layer.experts, len(names)) for layer in layers}
    now: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], _output: Any) -> None:
            hidden, index, weights = args
            for expert in index.unique().tolist():
                token, place = torch.where(index == expert)
                alone = module.forward(
                    hidden[token], torch.full_like(token, expert)[:, None], torch.ones(len(token), 1)
                )
                _add(
                    found[name],
                    expert,
                    weight=weights[token, place],
                    output=alone,
                    surprise=now["surprise"][token],
                    domain=now["domain"][token],
                )

        return hook

    hooks = [model.get_submodule(layer.name).register_forward_hook(watch(layer.name)) for layer in layers]
    for rows, domain in zip(blocks.ids.split(batch), labels.split(batch), strict=True):
        now["surprise"] = -unigram[rows].reshape(-1)
        now["domain"] = domain[:, None].expand_as(rows).reshape(-1)
        model(input_ids=rows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def _add(served: Served, expert: int, *, weight: Tensor, output: Tensor, surprise: Tensor, domain: Tensor) -> None:
    norm = torch.linalg.vector_norm(output, dim=1)
    served.count[expert] += len(weight)
    served.mass[expert] += weight.double().sum()
    served.surprise[expert] += surprise.double().sum()
    served.output[expert] += norm.double().sum()
    served.weighted[expert] += (norm * weight).double().sum()
    served.domains[expert] += torch.bincount(domain, minlength=served.domains.shape[1])


def unigram_of(blocks: Blocks, vocabulary: int, tokens: Path | None) -> Tensor:
    """Log probabilities of tokens with add-one smoothing. `[vocabulary]` float32

    Args:
        blocks: counted where there is no file.
        vocabulary: size.
        tokens: `tokens.safetensors` of a training run; its `DOMAIN.train` streams are counted.
    """
    counts = torch.ones(vocabulary, dtype=torch.float64)
    if tokens is None or not tokens.exists():
        counts += torch.bincount(blocks.ids.reshape(-1), minlength=vocabulary)
    else:
        with safe_open(tokens, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a dictionary
                if name.endswith(".train"):
                    counts += torch.bincount(file.get_tensor(name), minlength=vocabulary)
    return (counts.log() - math.log(float(counts.sum()))).float()
