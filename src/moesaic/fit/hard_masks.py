"""Hard masks: the share that they run, and how far they move the model's outputs. No sampling, no gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from moesaic.fit.rules import read
from moesaic.fit.text import batches
from moesaic.prune import Routed
from moesaic.prune.decide import decide
from moesaic.prune.otp import Otp, priced
from moesaic.runtime.skipping import Routing, Skipping

States = dict[str, dict[str, Tensor]]
_CLOSE = 0.002  # of the share
_BATCH_TOKENS = 2048
_TEACHER_BYTES = 1 << 28  # log probabilities that are kept from check to check


@contextmanager
def routed_by(model: PreTrainedModel, routing: Routing) -> Iterator[Skipping]:
    """Inside, `routing` decides what runs."""
    skipping = Skipping(model)
    skipping.routing = routing
    try:
        yield skipping
    finally:
        skipping.remove()


def logits_of(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Logits of all tokens but the last. `[tokens, vocabulary]` float32"""
    found = model(input_ids=batch.to(model.device), use_cache=False).logits[:, :-1]
    return found.reshape(-1, found.shape[-1]).float()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean `KL(teacher || student)` in nats a token, from logits `[tokens, vocabulary]`."""
    wanted, found = teacher.log_softmax(dim=-1), student.log_softmax(dim=-1)
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


class HeldBack:
    """Windows to measure states on, with the unpruned model's answers where there is room for them.

    Attributes:
        model: without a policy at work.
        windows: `[windows, length]`.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor) -> None:
        self.windows = windows
        self.model = model
        self._kept: list[Tensor] = []
        self._room = 4 * windows.numel() * model.get_input_embeddings().num_embeddings <= _TEACHER_BYTES

    @torch.no_grad()
    def divergence(self, policy: Otp, states: Mapping[str, Mapping[str, Tensor]]) -> float:
        """KL of the model with hard masks from the model without, in nats a token."""
        total = 0.0
        for place, batch in enumerate(batches(self.windows, _BATCH_TOKENS)):
            teacher = self._teacher(place, batch)
            with routed_by(self.model, lambda layer, routed: decide(policy, routed, states[layer])):
                total += float(divergence(teacher, logits_of(self.model, batch))) * len(batch)
        return total / len(self.windows)

    def _teacher(self, place: int, batch: Tensor) -> Tensor:
        if place < len(self._kept):
            return self._kept[place]
        found = logits_of(self.model, batch)
        if self._room:
            self._kept.append(found)
        return found


@torch.no_grad()
def meet_share(
    model: PreTrainedModel, policy: Otp, states: States, windows: Tensor, target: float, *, rounds: int = 3
) -> tuple[States, float]:
    """Set the common `cost` so that hard masks run the target share of these windows.

    The cost is found on the log errors of one pass; since other masks make other hidden states, the share is then
    measured, and the aim moved by what it misses.

    Returns:
        The states with that cost, and the share reached.
    """
    best: tuple[float, States] | None = None
    asked = target
    for turn in range(rounds + 1):
        errors: list[Tensor] = []

        def routing(layer: str, routed: Routed, now: States = states, seen: list[Tensor] = errors) -> Tensor:
            seen.append(policy.log_errors(routed, now[layer]))
            return decide(policy, routed, now[layer])

        with routed_by(model, routing) as skipping:
            skipping.count()
            read(model, windows)
            share = skipping.share()
        if best is None or abs(share - target) < abs(best[0] - target):
            best = (share, states)
        if abs(share - target) < _CLOSE or turn == rounds:
            break
        asked += target - share if turn else 0.0
        masks = policy.masks(_top_k(skipping)).to(model.device)
        states = _with_cost(states, share_cost(torch.cat(errors), masks, asked))
    assert best is not None
    return best[1], best[0]


def share_cost(log_errors: Tensor, masks: Tensor, share: float) -> float:
    """The logarithm of the price at which the most likely masks run that share. By bisection.

    Args:
        log_errors: `[tokens, masks - 1]`.
        masks: `[masks, k]`.
        share: of the places.
    """
    counts = masks.sum(dim=-1)
    low, high = -60.0, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        ran = counts[priced(log_errors, middle, masks).argmax(dim=-1)].mean() / masks.shape[1]
        low, high = (middle, high) if float(ran) > share else (low, middle)
    return (low + high) / 2


def _top_k(skipping: Skipping) -> int:
    return len(next(iter(skipping.kept.values())))


def _with_cost(states: States, cost: float) -> States:
    made = {layer: {**state} for layer, state in states.items()}
    for state in made.values():
        state["cost"] = torch.full_like(state["cost"], cost)
    return made
