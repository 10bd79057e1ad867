"""Many plans on one model in memory: every expert is rounded once a width, and plans are mixed from what is kept.

Packing and loading a model takes much longer than running it over some held-out text. For a quantizer that uses no data
an expert's rounded weights depend on the expert and its width alone, so that a plan is a choice among them. The
dequantized weights go into the full-precision float32 model, which then computes what the packed model computes with
`MOESAIC_CPU_PRECISION=exact`, up to float32 summation order; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from moesaic.checkpoint.reader import Checkpoint
from moesaic.families import MoeLayer
from moesaic.quantize import Quantizer, needs_moment
from moesaic.records import ENTRIES, STORED_WIDTH, BitPlan, LayerBits, LayerShape
from moesaic.runtime.hf import open_model

BATCH = 8


@dataclass(frozen=True)
class Measured:
    """What a model says of held-out text, a mean over the predicted tokens of each block.

    Attributes:
        kl: `[n]` float64, KL divergence of full precision from it, nats a token.
        loss: `[n]` float64, negative log likelihood, nats a token.
    """

    kl: Tensor
    loss: Tensor


class Mixture:
    """A full-precision model whose experts can be set to any widths.

    Attributes:
        checkpoint: the source.
        model: in float32; its experts are as the last plan left them.
        blocks: `[n, length]` token ids of the held-out text.
        quantizer: of the experts.
        log_probabilities: `[n, length - 1, vocabulary]` float32, of full precision.
        losses: `[n]` float64, of full precision.
    """

    def __init__(
        self,
        folder: Path,
        blocks: Tensor,
        quantizer: Quantizer,
        *,
        other_bits: int = STORED_WIDTH,
        batch: int = BATCH,
    ) -> None:
        """Open the model and run it in full precision over the blocks.

        Args:
            folder: a checkpoint of a causal language model with fused experts.
            blocks: `[n, length]` token ids.
            quantizer: one that uses no data.
            other_bits: width of the other linear layers, rounded after the full-precision run; 16 leaves them.
            batch: blocks at a time.

        Raises:
            ValueError: a quantizer that uses data, or a model that is no causal language model with fused experts.
        """
        if needs_moment(quantizer):
            raise ValueError(f"{quantizer} rounds with data: what it makes of an expert depends on the plan")
        self.checkpoint = Checkpoint.open(folder)
        if self.checkpoint.config.is_encoder_decoder or any(layer.family for layer in self.checkpoint.layers):
            raise ValueError(f"{folder}: only causal language models with fused experts can be mixed")
        self.model: Any = open_model(folder, dtype=torch.float32)
        self.quantizer = quantizer
        self.blocks = blocks
        self.batch = batch
        self._rounded: dict[tuple[str, str, int], list[Tensor | None]] = {}
        self._widths = {
            layer.name: {entry: [STORED_WIDTH] * layer.experts for entry in ENTRIES} for layer in self.layers
        }
        for layer in self.layers:
            for entry in ENTRIES:
                self._rounded[layer.name, entry, STORED_WIDTH] = list(self._parameter(layer, entry).clone())
        parts = [log_probabilities(self.model, rows) for rows in blocks.split(batch)]
        self.log_probabilities = torch.cat(parts)
        self.losses = token_losses(self.log_probabilities, blocks).mean(dim=1)
        if other_bits != STORED_WIDTH:
            self._round_others(other_bits)

    @property
    def layers(self) -> list[MoeLayer]:
        """The expert layers, first to last."""
        return self.checkpoint.layers

    @property
    def shapes(self) -> list[LayerShape]:
        """What allocators want to know."""
        return [layer.shape for layer in self.layers]

    def set(self, plan: BitPlan) -> None:
        """Give every expert the weights that the plan's widths make of it."""
        plan.check(self.shapes)
        for layer in self.layers:
            for entry in ENTRIES:
                for expert, bits in enumerate(plan.layers[layer.name].entry(entry)):
                    self._put(layer, entry, expert, bits)

    def restore(self) -> None:
        """All experts in full precision again."""
        widths = {layer.name: (STORED_WIDTH,) * layer.experts for layer in self.layers}
        self.set(BitPlan("full", None, {name: LayerBits(w, w) for name, w in widths.items()}))

    @contextmanager
    def one_expert(self, layer: MoeLayer, expert: int, bits: int) -> Iterator[None]:
        """One expert at that width and then as it was before."""
        before = {entry: self._widths[layer.name][entry][expert] for entry in ENTRIES}
        try:
            for entry in ENTRIES:
                self._put(layer, entry, expert, bits)
            yield
        finally:
            for entry, width in before.items():
                self._put(layer, entry, expert, width)

    def kl(self, plan: BitPlan) -> Measured:
        """The distance of the model from full precision with the plan's widths, and its loss."""
        self.set(plan)
        divergence, losses = [], []
        for at, rows in enumerate(self.blocks.split(self.batch)):
            logs = log_probabilities(self.model, rows)
            exact = self.log_probabilities[at * self.batch : at * self.batch + len(rows)]
            divergence.append(token_kl(exact, logs).mean(dim=1))
            losses.append(token_losses(logs, rows).mean(dim=1))
        return Measured(torch.cat(divergence), torch.cat(losses))

    def _put(self, layer: MoeLayer, entry: str, expert: int, bits: int) -> None:
        if self._widths[layer.name][entry][expert] == bits:
            return
        self._parameter(layer, entry)[expert].copy_(self._weights(layer, entry, expert, bits))
        self._widths[layer.name][entry][expert] = bits

    def _weights(self, layer: MoeLayer, entry: str, expert: int, bits: int) -> Tensor:
        known = self._rounded.setdefault((layer.name, entry, bits), [None] * layer.experts)
        found = known[expert]
        if found is None:
            matrices = self.checkpoint.expert(layer, expert).matrices()
            roles = [role for role in matrices if (role == "down") == (entry == "down")]
            rounded = {role: self.quantizer(matrices[role], bits).dequantize() for role in roles}
            found = known[expert] = fused(layer, entry, rounded)
        return found

    def _parameter(self, layer: MoeLayer, entry: str) -> Tensor:
        """The model's own tensor of an entry of all experts; writing to it changes the model."""
        parameter: Tensor = self.model.get_parameter(layer.fused_parameters[ENTRIES.index(entry)])
        return parameter.data

    def _round_others(self, bits: int) -> None:
        for name in self.checkpoint.linears:
            rounded = self.quantizer(self.checkpoint.parameter(f"{name}.weight"), bits)
            self.model.get_parameter(f"{name}.weight").data.copy_(rounded.dequantize())


def fused(layer: MoeLayer, entry: str, matrices: Mapping[str, Tensor]) -> Tensor:
    """One expert's part of a fused parameter, from canonical matrices `[out, in]` by role.

    The inverse of `checkpoint.reader.split_fused`.
    """
    if entry == "down":
        rows = matrices["down"]
    elif not layer.has_gate:
        rows = matrices["up"]
    else:
        pair = [matrices["gate"], matrices["up"]]
        rows = torch.cat(pair) if layer.concatenated else torch.stack(pair, dim=1).flatten(0, 1)
    return rows.T.contiguous() if layer.transposed else rows


@torch.inference_mode()
def log_probabilities(model: Any, rows: Tensor) -> Tensor:
    """Log probabilities of the next token. `[n, length]` -> `[n, length - 1, vocabulary]` float32"""
    return log_softmax(model(input_ids=rows, use_cache=False).logits[:, :-1].float(), dim=-1)


@torch.inference_mode()
def token_kl(exact: Tensor, logs: Tensor) -> Tensor:
    """KL divergence at every token from log probabilities `[…, vocabulary]`, in nats. `[…]` float64"""
    return (exact.exp() * (exact - logs)).sum(dim=-1).double()


@torch.inference_mode()
def token_losses(logs: Tensor, rows: Tensor) -> Tensor:
    """Negative log likelihood of the tokens that came, in nats. `[n, length - 1]` float64"""
    return -logs.gather(2, rows[:, 1:, None])[..., 0].double()
