"""Which experts a model's routers pick, and how far they are from those of the full-precision model."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.errors import UnsupportedModel
from moesaic.evaluate.quality import Mean, mean_with_interval
from moesaic.families import MoeLayer
from moesaic.text import Window


@dataclass(frozen=True)
class Agreement:
    """How far two models agree about the experts of a token.

    Attributes:
        same_set: share of tokens that both models send to the same set of experts, whatever their order and weights.
        overlap: mean share of a token's experts that both models picked, `|A and B| / k`.
        tokens: number of tokens, counted in every layer of which this speaks.
    """

    same_set: Mean
    overlap: Mean
    tokens: int


class RoutingRecorder:
    """Notes the experts that each expert layer is called with, while it is entered.

    It listens at the experts modules, which packed and ordinary models call alike, so that what counts is where
    tokens really go, with group limits, correction biases and capacities applied.
    """

    def __init__(self, model: PreTrainedModel, layers: list[MoeLayer]) -> None:
        """Prepare; nothing is hooked yet.

        Args:
            model: packed or not.
            layers: of its architecture; all are found in the model by their names.
        """
        self._model = model
        self._layers = layers
        self._calls: dict[str, list[Tensor]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> RoutingRecorder:
        for layer in self._layers:
            module = self._model.get_submodule(layer.name)
            self._hooks.append(module.register_forward_pre_hook(self._note(layer), with_kwargs=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _note(self, layer: MoeLayer) -> Any:
        def hook(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._calls.setdefault(layer.name, []).append(_chosen(_index(layer, positional, named), layer))

        return hook

    def take(self) -> dict[str, Tensor]:
        """Layer name -> experts of all tokens since the last call, `[tokens, k]` int64; then forget them.

        A token that no expert took (Switch Transformers beyond an expert's capacity) has the number of experts.
        """
        taken = {name: torch.cat(calls) for name, calls in self._calls.items()}
        self._calls = {}
        return taken


def _index(layer: MoeLayer, positional: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """What the experts module is told about which experts to use: its second argument."""
    found = positional[1] if len(positional) > 1 else named.get("top_k_index", named.get("selected_experts"))
    if not isinstance(found, Tensor):
        raise UnsupportedModel(f"{layer.name} is not called with the experts of each token: its routing is unknown")
    return found


def _chosen(index: Tensor, layer: MoeLayer) -> Tensor:
    if layer.family is not None and layer.family.one_hot:
        mask = index.reshape(-1, layer.experts)
        index = torch.where(mask.any(dim=-1), mask.argmax(dim=-1), layer.experts)[:, None]
    return index.detach().reshape(-1, index.shape[-1]).to("cpu", torch.long)


def same_sets(ours: Tensor, theirs: Tensor) -> Tensor:
    """Whether each token has the same set of experts in both, `[tokens]` bool, from `[tokens, k]` of either."""
    if ours.shape != theirs.shape:
        return torch.zeros(len(ours), dtype=torch.bool)
    return (ours.sort(dim=-1).values == theirs.sort(dim=-1).values).all(dim=-1)


def overlaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """Share of the reference's experts that both picked, `[tokens]` float64, from `[tokens, k]` of either."""
    both = (theirs[:, :, None] == ours[:, None, :]).any(dim=-1)
    return both.double().mean(dim=-1)


class RoutingComparison:
    """Compares the routers of two models while both read the same windows."""

    def __init__(self, model: PreTrainedModel, reference: PreTrainedModel, layers: list[MoeLayer]) -> None:
        self._ours = RoutingRecorder(model, layers)
        self._theirs = RoutingRecorder(reference, layers)
        self._encoder_decoder = bool(model.config.is_encoder_decoder)
        self._counts: list[dict[str, int]] = []  # one entry a window
        self._same: list[dict[str, float]] = []
        self._overlap: list[dict[str, float]] = []

    def __enter__(self) -> RoutingComparison:
        self._ours.__enter__()
        self._theirs.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ours.__exit__(kind, error, at)
        self._theirs.__exit__(kind, error, at)

    def add(self, batch: list[Window]) -> None:
        """Both models have just read these windows: compare their routers on the tokens that count.

        In decoders these are the tokens whose outputs are scored, so that overlapping windows count none twice; in
        encoders, which see no more of a token's future in one window than in another, all that were read.
        """
        ours, theirs = self._ours.take(), self._theirs.take()
        places = len(self._counts)
        for measures in (self._counts, self._same, self._overlap):
            measures.extend({} for _ in batch)
        for name, found in ours.items():
            wanted = theirs[name]
            rows = (found.reshape(len(batch), -1, found.shape[-1]), wanted.reshape(len(batch), -1, wanted.shape[-1]))
            for row, window in enumerate(batch):
                mine, other = (self._scored(part[row], name, window) for part in rows)
                self._counts[places + row][name] = len(mine)
                self._same[places + row][name] = float(same_sets(mine, other).sum())
                self._overlap[places + row][name] = float(overlaps(mine, other).sum())

    def _scored(self, experts: Tensor, name: str, window: Window) -> Tensor:
        """The tokens `[…, k]` of one window and layer that count."""
        if not self._encoder_decoder:
            return experts[len(experts) - 1 - window.scored : -1]
        return experts if name.startswith("encoder.") else experts[-window.scored :]

    def layers(self) -> dict[str, Agreement]:
        """The agreement of every layer, with intervals from the spread between windows."""
        names = list(self._counts[0]) if self._counts else []
        return {name: self._agreement([name]) for name in names}

    def overall(self) -> Agreement:
        """The agreement over all layers; a window with all its layers is one sample, since its layers are related."""
        return self._agreement(list(self._counts[0]))

    def _agreement(self, names: list[str]) -> Agreement:
        counts = [sum(window[name] for name in names) for window in self._counts]
        same, overlap = (
            mean_with_interval([sum(window[name] for name in names) for window in measure], counts)
            for measure in (self._same, self._overlap)
        )
        return Agreement(_within(same), _within(overlap), sum(counts))


def _within(mean: Mean) -> Mean:
    """A share's interval ends at 0 and 1."""
    return Mean(mean.value, max(0.0, mean.low), min(1.0, mean.high))
