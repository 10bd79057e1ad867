"""A whole decoder layer for single tokens as one native call.

It computes what its parts do one by one (`kernels/single_token.py`, `kernels/cpu.py`), with the same bits. What is
saved is the way between them: thirty calls of Python and torch, whose code the weights push out of the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import UsageError
from moesaic.kernels.cpu import ACTIVATIONS, export, given, native, plan_of, precision_in_use, ready, threads
from moesaic.kernels.layer import ExpertLayer
from moesaic.kernels.single_token import Routing, bits_of
from moesaic.kernels.skipping import MaskDecision
from moesaic.packing.layout import MatrixLayout


@dataclass(frozen=True)
class NormWeights:
    """One or two RMSNorms that are alike.

    Attributes:
        weights: of each, `[columns]`.
        epsilon: added to the mean square.
        offset: added to the weights.
    """

    weights: tuple[Tensor, Tensor]
    epsilon: float
    offset: float = 0.0


@dataclass(frozen=True)
class AttentionWeights:
    """A layer up to the norm before its experts.

    Attributes:
        norms: before attention and before the experts.
        matrices: blob, layout and bias for queries, keys, values and the output; of one width, group size and grid.
        head_size: numbers of a head.
        head_norms: of queries and keys, or None.
        joins_heads: these norms are of all heads together, else of each.
        scale: of the products of queries and keys.
    """

    norms: NormWeights
    matrices: Sequence[tuple[Tensor, MatrixLayout, Tensor | None]]
    head_size: int
    head_norms: NormWeights | None
    joins_heads: bool
    scale: float


@dataclass(frozen=True)
class RouterWeights:
    """A router.

    Attributes:
        weight: `[experts, hidden]` bfloat16.
        routing: how it chooses.
        rounds: logits are rounded to the dtype of the activations.
        logit_bias: `[experts]` or None.
        choice_bias: `[experts]` or None.
    """

    weight: Tensor
    routing: Routing
    rounds: bool
    logit_bias: Tensor | None = None
    choice_bias: Tensor | None = None


class DecoderLayer:
    """The native layer, which holds on to its tensors.

    Attributes:
        has_experts: whether a step can go to the end of the layer.
        native: the native module's object.
    """

    def __init__(self, attention: AttentionWeights) -> None:
        """Take the part up to the norm before the experts.

        Raises:
            UsageError: a tensor does not fit the others.
            KernelUnavailable: no compiled module.
        """
        first, last = attention.matrices[0][1], attention.matrices[3][1]
        size = attention.head_size
        heads = attention.head_norms or NormWeights((torch.empty(0), torch.empty(0)), 0.0)
        weights = (None, None) if attention.head_norms is None else heads.weights
        self.has_experts = False
        self.native = _refused(
            native().DecoderLayer,
            last.rows,
            first.rows // size,
            attention.matrices[1][1].rows // size,
            size,
            first.group_size,
            first.symmetric,
            first.bits,
            *(given(weight) for weight in attention.norms.weights),
            attention.norms.epsilon,
            attention.norms.offset,
            [export(blob) for blob, _, _ in attention.matrices],
            [given(bias) for _, _, bias in attention.matrices],
            *(given(weight) for weight in weights),
            attention.joins_heads,
            heads.epsilon,
            heads.offset,
            attention.scale,
        )

    def set_experts(self, layer: ExpertLayer, router: RouterWeights) -> None:
        """Go on with these experts, if the native code can run all of them: see `has_experts`.

        Raises:
            UsageError: a tensor does not fit the others.
        """
        plan = plan_of(layer.spec)
        if plan.stored or layer.activation.kind not in ACTIVATIONS:
            return
        how = router.routing
        choice = None if router.choice_bias is None else export(ready(router.choice_bias, torch.float32))
        _refused(
            self.native.set_experts,
            plan.layer,
            [export(tensor) for tensor in layer.gate_up.ordered],
            [export(tensor) for tensor in layer.down.ordered],
            given(layer.gate_up_bias),
            given(layer.down_bias),
            bits_of("decoder layer", router.weight),
            given(router.logit_bias),
            choice,
            *(how.top_k, how.sigmoid, how.normalises, how.groups, how.kept_groups, how.scale),
            router.rounds,
        )
        self.has_experts = True

    def set_skipping(self, decision: MaskDecision | None, top_k: int) -> None:
        """Let OTP decide which of a token's `top_k` experts run, or let all of them run.

        Raises:
            UsageError: a state of other experts.
        """
        if decision is None:
            self.native.clear_mask_router()
        else:
            _refused(self.native.set_mask_router, *decision.arrays(top_k), *decision.numbers())

    def step(
        self,
        x: Tensor,
        turns: tuple[Tensor, Tensor],
        rooms: tuple[Tensor, Tensor],
        used: int,
        seen: Tensor | None,
        *,
        whole: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """One token of every row.

        Args:
            x: `[rows, 1, hidden]` bfloat16 or float16.
            turns: cosines and sines of the rotary embedding, `[rows or 1, 1, rotated]` in the dtype of `x`.
            rooms: keys and values, `[rows, shared heads, room, head_size]`; place `used` is filled.
            used: tokens that are in them.
            seen: `[rows, used + 1]` bool, which keys a row sees; all by default.
            whole: to the end of the layer.

        Returns:
            The layer's output and None; or the sum after attention and its norm, both `[rows, 1, hidden]`.

        Raises:
            UsageError: a tensor does not fit the others.
        """
        x = ready(x, x.dtype)
        out = torch.empty_like(x)
        normed = None if whole else torch.empty_like(x)
        _refused(
            self.native.run,
            *_common(x, turns),
            export(rooms[0]),
            export(rooms[1]),
            used,
            _mask(seen),
            export(out),
            None if normed is None else export(normed),
            precision_in_use(),
            threads(),
        )
        return out, normed


def run_layers(  # noqa: PLR0917 (what a step takes)
    layers: Sequence[DecoderLayer],
    x: Tensor,
    turns: tuple[Tensor, Tensor],
    rooms: Sequence[tuple[Tensor, Tensor]],
    used: int,
    seen: Tensor | None,
) -> Tensor:
    """One token of every row through several layers that have experts; see `DecoderLayer.step`.

    Raises:
        UsageError: a tensor does not fit the others.
    """
    x = ready(x, x.dtype)
    out = torch.empty_like(x)
    _refused(
        native().run_layers,
        [layer.native for layer in layers],
        *_common(x, turns),
        [export(keys) for keys, _ in rooms],
        [export(values) for _, values in rooms],
        used,
        _mask(seen),
        export(out),
        precision_in_use(),
        threads(),
    )
    return out


def _common(x: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Any, Any, Any]:
    return export(x), export(ready(turns[0], x.dtype)), export(ready(turns[1], x.dtype))


def _mask(seen: Tensor | None) -> Any:
    return None if seen is None else export(ready(seen, torch.bool).view(torch.uint8))


def _refused(call: Any, *arguments: Any) -> Any:
    """The call, its refusal an error of ours."""
    try:
        return call(*arguments)
    except ValueError as error:
        raise UsageError(f"cpu decoder layer: {error}") from None
