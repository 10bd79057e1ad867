"""What the experts of a fine-tuned model do on training sentences: counts, routing weights, moments of their inputs.

The package's calibration does not take encoder-decoders, so the whole model is kept in memory here and hooks collect
the inputs of the expert layers, padding left out. A moment of an expert that few tokens reached is drawn toward its
layer's by the package's own rule (`moesaic.calibrate.moments`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from moesaic.calibrate.moments import Moment, sample_rows
from moesaic.records import ExpertStats, LayerStats

from .models import BATCH, TEST_SEED
from .task import IGNORED, Item, encoded_batch, held_out_pairs


@dataclass
class Seen:
    """Tokens that an expert layer saw.

    Attributes:
        inputs: `[tokens, hidden]` float32.
        expert: `[tokens]`, the expert that each was sent to.
        weight: `[tokens]`, the routing weight it was given.
    """

    inputs: Tensor
    expert: Tensor
    weight: Tensor


def expert_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The experts modules by name, in order; the names are those of the package's layers."""
    return {
        name: module for name, module in model.named_modules() if type(module).__name__ == "SwitchTransformersExperts"
    }


def experts_of(module: nn.Module) -> list[nn.Module]:
    """The experts of a layer, each with `wi` and `wo`."""
    return [module[f"expert_{at}"] for at in range(module.num_experts)]


@contextmanager
def _collecting(model: PreTrainedModel, found: dict[str, list[Seen]], real: dict[str, Tensor]) -> Iterator[None]:
    """Hooks that note the real tokens of every expert layer; `real` holds the masks of the running batch."""
    handles = []
    for name, module in expert_layers(model).items():

        def note(_: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
            inputs, chosen, weight = arguments
            kept = real[name.partition(".")[0]]
            expert, sent = chosen[kept, 0].argmax(dim=-1), chosen[kept, 0].sum(dim=-1)
            if not bool((sent == 1).all()):
                raise RuntimeError(f"{name}: {int((sent == 0).sum())} tokens over the expert capacity were dropped")
            found[name].append(Seen(inputs[kept].clone(), expert, weight[kept, 0].clone()))

        handles.append(module.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def observe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> dict[str, Seen]:
    """Run the model on sentences, teacher-forced, and keep what its expert layers saw.

    Raises:
        RuntimeError: a token was dropped for an expert's capacity; no counts would be right then.
    """
    pairs = held_out_pairs(items, TEST_SEED + 1)
    found: dict[str, list[Seen]] = {name: [] for name in expert_layers(model)}
    real: dict[str, Tensor] = {}
    with _collecting(model, found, real):
        for start in range(0, len(items), BATCH):
            batch = encoded_batch(tokenizer, pairs[start : start + BATCH])
            real["encoder"] = batch["attention_mask"].bool().flatten()
            real["decoder"] = (batch["labels"] != IGNORED).flatten()
            model(**batch, use_cache=False)
    return {
        name: Seen(*(torch.cat([getattr(each, field) for each in parts]) for field in ("inputs", "expert", "weight")))
        for name, parts in found.items()
    }


@dataclass(frozen=True)
class Moments:
    """Second moments of the inputs of each expert's two matrices, `[in, in]` each."""

    wi: list[Tensor]
    wo: list[Tensor]


@torch.no_grad()
def moments(module: nn.Module, seen: Seen) -> Moments:
    """Second moments of one layer's experts."""
    shared = seen.inputs[sample_rows(len(seen.inputs))]
    found = Moments([], [])
    for number, expert in enumerate(experts_of(module)):
        own = seen.inputs[seen.expert == number]
        for inputs, toward, into in (
            (own, shared, found.wi),
            (_hidden(expert, own), _hidden(expert, shared), found.wo),
        ):
            layer = Moment(inputs.shape[1])
            layer.add(toward)
            moment = Moment(inputs.shape[1])
            moment.add(inputs)
            into.append(moment.shrunk(layer.mean()))
    return found


def _hidden(expert: nn.Module, inputs: Tensor) -> Tensor:
    return expert.act(expert.wi(inputs))


def expert_stats(seen: dict[str, Seen], found: dict[str, Moments]) -> ExpertStats:
    """The same as the package's calibration would give to its rules; the applied weight is the softmax' own."""
    layers = {}
    for name, each in seen.items():
        experts = len(found[name].wi)
        mass = torch.zeros(experts, dtype=torch.float64).index_add_(0, each.expert, each.weight.double())
        layers[name] = LayerStats(
            tokens=len(each.expert),
            count=torch.bincount(each.expert, minlength=experts),
            mass_before=mass,
            mass=mass,
            gate_up_moment=torch.stack([moment.diagonal() for moment in found[name].wi]).double(),
            down_moment=torch.stack([moment.diagonal() for moment in found[name].wo]).double(),
        )
    return ExpertStats(layers=layers)
