"""An expert layer whose weights stay packed, every expert with its own width."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.families import MoeLayer
from moesaic.kernels import select
from moesaic.kernels.layer import Activation, ExpertEntry, ExpertLayer, spec_of
from moesaic.packing.layout import EntryLayout
from moesaic.records import STORED_WIDTH

_KINDS = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "ReLU": "relu",
}


class PackedEntry(nn.Module):
    """The tensors of one entry, `b1`, `b2`, … `b16` after the widths that occur."""

    def __init__(self, layout: EntryLayout, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout = layout
        for width, shape in layout.shapes().items():
            kind = dtype if width == STORED_WIDTH else torch.uint8
            self.register_buffer(f"b{width}", torch.empty(shape, dtype=kind, device="meta"))

    def view(self) -> ExpertEntry:
        """The entry as the kernels want it."""
        return ExpertEntry(self.layout, {width: getattr(self, f"b{width}") for width in self.layout.shapes()})


class PackedExperts(nn.Module):
    """Takes the place of a model's experts module, with the same call."""

    def __init__(
        self, layer: MoeLayer, layouts: dict[str, EntryLayout], original: nn.Module, dtype: torch.dtype
    ) -> None:
        """Make the module, without its data.

        Args:
            layer: what it is.
            layouts: of its two entries.
            original: the module it replaces; only its activation is used.
            dtype: of experts of width 16 and of biases.
        """
        super().__init__()
        self.experts = layer.experts
        self.one_hot = layer.family is not None and layer.family.one_hot
        self.has_gate = layer.has_gate
        self.gate_up = PackedEntry(layouts["gate_up"], dtype)
        self.down = PackedEntry(layouts["down"], dtype)
        if layer.has_bias:
            for role, rows, _ in layer.matrices:
                self.register_buffer(f"{role}_bias", torch.empty(layer.experts, rows, dtype=dtype, device="meta"))
        self.has_bias = layer.has_bias
        self._activation = [activation_of(layer, original)]  # in a list, so that the original is no submodule
        # made here and not with the layer: torch.compile may trace the first call, and cannot follow this
        self._spec = spec_of(layouts["gate_up"], layouts["down"], self._activation[0])
        self._layer: ExpertLayer | None = None
        self._layer_of: tuple[Tensor | None, ...] = ()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Every token through its experts, weighted and summed.

        Args:
            hidden_states: `[tokens, hidden]`.
            top_k_index: `[tokens, k]`, -1 for no expert; for Switch Transformers a one-hot mask `[tokens, 1, experts]`.
            top_k_weights: `[tokens, k]`.
        """
        if self.one_hot:
            chosen = top_k_index.reshape(-1, self.experts)
            # a token beyond its expert's capacity has no expert: an empty place
            top_k_index = torch.where(chosen.any(dim=-1), chosen.argmax(dim=-1), -1)[:, None]
        return select(hidden_states.device.type).experts(hidden_states, top_k_index, top_k_weights, self.packed_layer())

    def packed_layer(self) -> ExpertLayer:
        """The layer as the kernels want it; made again when the module got other tensors."""
        parts = (self.gate_up, self.down, self)
        tensors = tuple(each for part in parts for each in part._buffers.values() if each is not None)
        known = self._layer
        if known is not None and all(map(operator.is_, tensors, self._layer_of)):
            return known
        self._layer = self._make_layer()
        self._layer_of = tensors
        return self._layer

    def _make_layer(self) -> ExpertLayer:
        first_bias = None
        if self.has_bias:
            roles = ("gate", "up") if self.has_gate else ("up",)
            first_bias = torch.cat([getattr(self, f"{role}_bias") for role in roles], dim=1)
        return ExpertLayer(
            gate_up=self.gate_up.view(),
            down=self.down.view(),
            activation=self._activation[0],
            gate_up_bias=first_bias,
            down_bias=self.get_buffer("down_bias") if self.has_bias else None,
            spec=self._spec,
        )

    def extra_repr(self) -> str:
        """Widths, for `print(model)`."""
        return f"experts={self.experts}, bits={' '.join(map(str, self.gate_up.layout.widths))}"


def activation_of(layer: MoeLayer, module: Any) -> Activation:
    """What the original module computes between its two linear layers."""
    if layer.family is not None:
        act = module.get_submodule(layer.family.expert.format(0)).get_submodule(layer.family.activation)
        return Activation(_KINDS.get(type(act).__name__, "other"), act)
    if not layer.has_gate:
        return Activation(_KINDS.get(type(module.act_fn).__name__, "other"), module.act_fn)
    # the method of the architecture, called on the emptied module: it may read attributes such as `limit`
    apply_gate: Callable[[Tensor], Tensor] = module._apply_gate
    function = apply_gate if layer.concatenated else _interleaved(apply_gate)
    if apply_gate.__func__.__name__ == "_default_apply_gate":  # type: ignore[attr-defined]
        return Activation(_KINDS.get(type(module.act_fn).__name__, "other"), function)
    if type(module).__name__ == "GptOssExperts":
        return Activation("swiglu_clamped", function, alpha=float(module.alpha), limit=float(module.limit))
    return Activation("other", function)


def _interleaved(apply_gate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """For methods that expect gate and up in alternating columns."""

    def function(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return apply_gate(torch.stack((gate, up), dim=-1).flatten(-2))

    return function
