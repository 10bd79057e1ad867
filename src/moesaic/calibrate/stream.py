"""A decoder model run one layer at a time: only the layer at work has its weights, and its experts have none.

The model is transformers' own, on the meta device. Its forward is run with the decoder layers swapped for the
identity, once to see what each layer is called with (positions, masks, rotary tables) and what goes into the first.
Inside a layer the routed experts are swapped too: what they are given is kept for all tokens, they are then worked
through one at a time over all of them, and their sum is put back where the layer left off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moesaic.calibrate.activations import Shelf
from moesaic.calibrate.store import Store
from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import UnsupportedModel
from moesaic.families import MoeLayer
from moesaic.families.skeleton import build_skeleton
from moesaic.runtime.experts import activation_of

BATCH_TOKENS = 4096  # tokens that go through a decoder layer at a time


@dataclass(frozen=True)
class Routed:
    """What the experts of one layer are given, over all `T` calibration tokens.

    Attributes:
        hidden: `[T, hidden]` float32.
        index: `[T, k]` int64, the chosen experts.
        weight: `[T, k]` float32, their weights as they are applied.
        logits: `[T, experts]` float32, what the router said before choosing; None where it does not show it.
    """

    hidden: Tensor
    index: Tensor
    weight: Tensor
    logits: Tensor | None

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens `[n]` routed to an expert, ascending, and their weights `[n]`."""
        token, place = torch.where(self.index == expert)
        return token, self.weight[token, place]


class LayerStream:
    """Runs a checkpoint's model layer by layer over a set of token sequences.

    Attributes:
        checkpoint: where weights come from.
        tokens: `[n, length]` int64.
        stack: name of the list of decoder layers with a dot at its end, such as `model.layers.`.
        count: number of decoder layers.
        shelf: where hidden states lie.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokens: Tensor, shelf: Shelf, *, trust_remote_code: bool = False
    ) -> None:
        """Prepare; reads everything outside the decoder layers (embeddings, last norm, head).

        Raises:
            UnsupportedModel: an encoder-decoder, or an architecture whose decoder layers are not one list.
        """
        self.checkpoint, self.tokens, self.shelf = checkpoint, tokens, shelf
        if checkpoint.config.is_encoder_decoder:
            raise UnsupportedModel(
                f"{checkpoint.name}: calibration runs decoder models; for an encoder-decoder "
                f"({checkpoint.config.model_type}) use a rule without data and the quantizer rtn or hqq"
            )
        self.stack = _only_stack(checkpoint)
        self._model: PreTrainedModel = build_skeleton(
            checkpoint.config, trust_remote_code=trust_remote_code, real_buffers=True
        ).eval()
        self._layers: nn.ModuleList = self._model.get_submodule(self.stack[:-1])  # type: ignore[assignment]
        self.count = len(self._layers)
        self._load([name for name in checkpoint.shapes if not name.startswith(self.stack)])
        self._calls: dict[int, list[dict[str, Any]]] = {}

    @property
    def batches(self) -> list[slice]:
        """Runs of sequences that go through a layer together."""
        step = max(1, BATCH_TOKENS // self.tokens.shape[1])
        return [slice(at, min(at + step, len(self.tokens))) for at in range(0, len(self.tokens), step)]

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """The batches as sequences and as tokens."""
        length = self.tokens.shape[1]
        for rows in self.batches:
            yield rows, slice(rows.start * length, rows.stop * length)

    def prefix(self, number: int) -> str:
        """Beginning of the names of everything in a decoder layer."""
        return f"{self.stack}{number}."

    def moe(self, number: int) -> MoeLayer | None:
        """The expert layer inside a decoder layer, None in a dense one."""
        return next((layer for layer in self.checkpoint.layers if layer.name.startswith(self.prefix(number))), None)

    def activation(self, layer: MoeLayer) -> Callable[[Tensor], Tensor]:
        """What the experts compute between their two linear layers."""
        return activation_of(layer, self._model.get_submodule(layer.name)).function

    def module(self, name: str) -> nn.Module:
        """A module of the model by its full name."""
        return self._model.get_submodule(name)

    def parameter(self, name: str) -> Tensor:
        """A weight as it is in place now."""
        return self._model.get_parameter(name).detach()

    def new_states(self) -> Tensor:
        """Room for the hidden states of all tokens. `[n, length, hidden]`"""
        return self.shelf.empty(*self.tokens.shape, self._hidden)

    def reserve(self, store: Store, *, kept: int, mapped: int) -> None:
        """Refuse to begin what the disk has no room for.

        Args:
            store: where sets of hidden states are kept.
            kept: how many of them at a time.
            mapped: how many are at work at a time, which lie in files too when they are large.

        Raises:
            StorageFull: with both sizes.
        """
        size = 4 * self.tokens.numel() * self._hidden
        what = f"the hidden states of {self.tokens.numel():,} calibration tokens need"
        store.reserve(kept * size + self.shelf.room(mapped, size), what, "give fewer --sequences")

    @property
    def _hidden(self) -> int:
        return int(self._model.get_input_embeddings().weight.shape[1])

    @torch.no_grad()
    def embed(self) -> Tensor:
        """What goes into the first decoder layer. `[n, length, hidden]`"""
        states = self.new_states()
        for rows in self.batches:
            seen: list[Tensor] = []

            def see(_: int, hidden: Tensor, __: dict[str, Any], seen: list[Tensor] = seen) -> None:
                seen.append(hidden)

            with self._identity_layers(see):
                self._base()(input_ids=self.tokens[rows], use_cache=False)
            states[rows] = seen[0]
        return states

    @contextmanager
    def loaded(self, number: int) -> Iterator[nn.Module]:
        """The decoder layer with its weights in float32, routed experts excepted; without them afterwards."""
        experts = self.moe(number)
        routed = set(experts.parameters()) if experts else set()
        names = [name for name in self.checkpoint.shapes if name.startswith(self.prefix(number)) and name not in routed]
        self._load(names)
        try:
            yield self._layers[number]
        finally:
            self._unload(names)

    def set_parameter(self, name: str, value: Tensor) -> None:
        """Put another weight in place, until the layer is left."""
        self._put(name, value.float())

    def call(self, number: int, hidden: Tensor, experts: Callable[[Tensor, Tensor, Tensor], Tensor] | None) -> Tensor:
        """One decoder layer on some sequences.

        Args:
            number: of the layer, which is loaded.
            hidden: `[sequences, length, hidden]`.
            experts: takes the place of the routed experts: `(hidden [tokens, hidden], index, weights)`.
        """
        layer, arguments = self._layers[number], self._arguments(len(hidden))[number]
        moe = self.moe(number)
        if moe is None or experts is None:
            out = layer(hidden, **arguments)
        else:
            module = self._model.get_submodule(moe.name)
            module.forward = experts  # type: ignore[assignment]
            try:
                out = layer(hidden, **arguments)
            finally:
                del module.forward
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    @torch.no_grad()
    def route(self, number: int, states: Tensor) -> Routed:
        """What the experts of a loaded layer are given."""
        layer = self.moe(number)
        assert layer is not None
        hidden = self.shelf.empty(self.tokens.numel(), layer.hidden)
        seen: list[tuple[Tensor, Tensor]] = []
        logits: list[Tensor] = []
        at = 0

        def record(x: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            nonlocal at
            hidden[at : at + len(x)] = x
            at += len(x)
            seen.append((top_k_index.long(), top_k_weights.float()))
            return torch.zeros_like(x)

        with self._router_logits(layer, logits):
            for rows in self.batches:
                self.call(number, states[rows], record)
        index = torch.cat([each for each, _ in seen])
        weight = torch.cat([each for _, each in seen])
        whole = len(logits) == len(seen)
        return Routed(hidden, index, weight, torch.cat(logits) if whole else None)

    @torch.no_grad()
    def finish(self, number: int, states: Tensor, experts_out: Tensor | None) -> None:
        """Send all tokens through a loaded layer, `experts_out` `[T, hidden]` in place of its routed experts' sum."""
        for rows, part in self.parts():
            states[rows] = self.call(number, states[rows], None if experts_out is None else giving(experts_out[part]))

    def logits(self, rows: slice, states: Tensor) -> Tensor:
        """The model's logits from what the last decoder layer gave for some sequences; keeps the gradient."""

        def give(number: int, hidden: Tensor, _: dict[str, Any]) -> Tensor:
            return states if number == 0 else hidden

        with self._identity_layers(give):
            out: Tensor = self._model(input_ids=self.tokens[rows], use_cache=False).logits
        return out

    def _base(self) -> nn.Module:
        return self._model.get_submodule(self.stack.rstrip(".").rpartition(".")[0])

    def _arguments(self, sequences: int) -> list[dict[str, Any]]:
        """What each decoder layer is called with beside the hidden states; it depends on the shape alone."""
        if sequences not in self._calls:
            calls: list[dict[str, Any]] = [{} for _ in range(self.count)]
            with torch.no_grad(), self._identity_layers(lambda number, _, named: calls[number].update(named)):
                self._base()(input_ids=self.tokens[:sequences], use_cache=False)
            self._calls[sequences] = calls
        return self._calls[sequences]

    @contextmanager
    def _identity_layers(self, see: Callable[[int, Tensor, dict[str, Any]], Tensor | None]) -> Iterator[None]:
        """Decoder layers that show what they are called with, and give back what `see` returns or their input."""

        def stand_in(number: int) -> Callable[..., Tensor]:
            def forward(hidden_states: Tensor, **named: Any) -> Tensor:
                given = see(number, hidden_states, named)
                return hidden_states if given is None else given

            return forward

        for number, layer in enumerate(self._layers):
            layer.forward = stand_in(number)  # type: ignore[assignment]
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    @contextmanager
    def _router_logits(self, layer: MoeLayer, found: list[Tensor]) -> Iterator[None]:
        """Keep what the router gives out for every token and expert, where it is a module that does."""
        path = layer.router.rpartition(".")[0]
        if path == layer.name.rpartition(".")[0]:
            yield
            return

        def see(_: nn.Module, __: Any, output: Any) -> None:
            for part in output if isinstance(output, tuple) else (output,):
                if isinstance(part, Tensor) and part.shape[-1] == layer.experts and part.is_floating_point():
                    found.append(part.detach().float().view(-1, layer.experts))
                    return

        handle = self._model.get_submodule(path).register_forward_hook(see)
        try:
            yield
        finally:
            handle.remove()

    def _load(self, names: list[str]) -> None:
        tied = dict(getattr(self._model, "all_tied_weights_keys", None) or {})
        for name in names:
            if name in self.checkpoint.sources:
                value = self.checkpoint.parameter(name)
                self._put(name, value.float() if value.is_floating_point() else value)
        for name in names:
            if name not in self.checkpoint.sources and name in tied:
                owner, _, short = name.rpartition(".")
                self._model.get_submodule(owner)._parameters[short] = self._model.get_parameter(tied[name])

    def _unload(self, names: list[str]) -> None:
        for name in names:
            self._put(name, torch.empty(self.checkpoint.shapes[name], device="meta"))

    def _put(self, name: str, value: Tensor) -> None:
        owner, _, short = name.rpartition(".")
        module = self._model.get_submodule(owner)
        if short in module._parameters:
            module._parameters[short] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[short] = value


def giving(value: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Experts that give `value` `[tokens, hidden]` whatever they are given."""
    return lambda x, _, __: value.view(x.shape)


def _only_stack(checkpoint: Checkpoint) -> str:
    """`model.layers.` for layers such as `model.layers.3.mlp.experts`."""
    stacks = set()
    for layer in checkpoint.layers:
        parts = layer.name.split(".")
        number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        stacks.add(".".join(parts[:number]) + "." if number else "")
    if len(stacks) != 1 or "" in stacks:
        raise UnsupportedModel(
            f"{checkpoint.name}: its expert layers lie in {', '.join(sorted(stacks))} and not in one list of decoder "
            "layers; calibration cannot run it layer by layer"
        )
    return stacks.pop()
