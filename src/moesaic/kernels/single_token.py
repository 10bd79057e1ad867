"""What a token passes through between the packed matrices, natively: norms, routers, attention, unpacked layers.

In torch each of these is up to twenty small operations. While a model generates they take as long as the matrices of a
layer of small experts: the weights that stream through the caches push out torch's code and Python's, and every
operation begins by fetching them again. These are called by `runtime/single_token/`; transformers' own modules, and
formulas in float64, are the references that test them. For inference only: nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import UsageError
from moesaic.kernels.cpu import export, given, native, precision_in_use, ready, threads
from moesaic.packing.layout import MatrixLayout


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, offset: float = 0.0) -> Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * (weight + offset)` over the last dimension, in float32, rounded once.

    Args:
        x: `[..., columns]` float32, bfloat16 or float16.
        weight: `[columns]`, one of these.
        epsilon: added to the mean square.
        offset: added to the weight; some families store what is left of 1.

    Raises:
        UsageError: a tensor does not fit the other.
        KernelUnavailable: no compiled module.
    """
    x = ready(x, x.dtype)
    out = torch.empty_like(x)
    _run("rms_norm", export(x), given(weight), export(out), epsilon, offset, 1 if x.shape[0] == 1 else threads())
    return out


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """`x W^T` with a bfloat16 `W` that is not packed, for a few rows: reads it once, at the memory's speed.

    Args:
        x: `[..., columns]` float32, bfloat16 or float16.
        weight: `[rows, columns]` bfloat16.

    Returns:
        `[..., rows]` in the dtype of `x`; sums are float32.

    Raises:
        UsageError: a tensor does not fit the other.
        KernelUnavailable: no compiled module.
    """
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    _run("dense", export(ready(x, x.dtype)), bits_of("dense", weight), export(out), threads())
    return out


def linears(x: Tensor, matrices: Sequence[tuple[Tensor, MatrixLayout, Tensor | None]]) -> list[Tensor]:
    """The products of `x` with several packed matrices, which are one call: `x` is quantized once.

    Args:
        x: `[..., columns]` float32, bfloat16 or float16.
        matrices: blob, layout and bias of each, as for `kernels.cpu.linear`; all of the same columns, width, group
            size and grid.

    Returns:
        `[..., rows]` for each.

    Raises:
        UsageError: a tensor does not fit, or the layouts do not go together.
        KernelUnavailable: no compiled module.
    """
    first = matrices[0][1]
    size = (first.columns, first.bits, first.group_size, first.symmetric)
    if any((each.columns, each.bits, each.group_size, each.symmetric) != size for _, each, _ in matrices):
        raise UsageError("cpu linears: the matrices differ in columns, width, group size or grid")
    outs = [x.new_empty(*x.shape[:-1], layout.rows) for _, layout, _ in matrices]
    blobs, biases = [export(blob) for blob, _, _ in matrices], [given(bias) for _, _, bias in matrices]
    rows = [layout.rows for _, layout, _ in matrices]
    how = (precision_in_use(), threads())
    _run("linear", export(ready(x, x.dtype)), blobs, biases, [export(out) for out in outs], rows, *size, *how)
    return outs


@dataclass(frozen=True)
class Routing:
    """How a router chooses.

    Attributes:
        top_k: experts of a token.
        sigmoid: shares are sigmoids of the logits; else their softmax.
        normalises: chosen shares are divided by their sum.
        scale: what they are multiplied with then.
        groups: the experts are so many groups of neighbours; those of the `kept_groups` best (by the sum of their two
            largest shares) can be chosen.
        kept_groups: see `groups`.
    """

    top_k: int
    sigmoid: bool = False
    normalises: bool = True
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1


def route(
    x: Tensor,
    weight: Tensor,
    routing: Routing,
    *,
    logits: torch.dtype,
    logit_bias: Tensor | None = None,
    choice_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which experts every token goes to. Of equals the first one is chosen.

    Args:
        x: `[tokens, hidden]` float32, bfloat16 or float16.
        weight: `[experts, hidden]` bfloat16.
        routing: see there.
        logits: dtype that the logits are rounded to before anything else.
        logit_bias: `[experts]`, added to the logits.
        choice_bias: `[experts]`, added to the shares for the choice alone.

    Returns:
        Logits `[tokens, experts]`, shares `[tokens, top_k]` float32 with the largest first, and the experts, int64.

    Raises:
        UsageError: a tensor does not fit, or more places than experts to choose from.
        KernelUnavailable: no compiled module.
    """
    found = x.new_empty(x.shape[0], weight.shape[0], dtype=logits)
    shares = x.new_empty(x.shape[0], routing.top_k, dtype=torch.float32)
    index = x.new_empty(x.shape[0], routing.top_k, dtype=torch.int64)
    biases = (given(logit_bias), None if choice_bias is None else export(ready(choice_bias, torch.float32)))
    outs = (export(found), export(index), export(shares))
    how = (routing.sigmoid, routing.normalises, routing.groups, routing.kept_groups, routing.scale, threads())
    _run("route", export(ready(x, x.dtype)), bits_of("route", weight), *biases, *outs, *how)
    return found, shares, index


def rotate(  # noqa: PLR0917 (what it takes)
    queries: Tensor,
    keys: Tensor,
    cosines: Tensor,
    sines: Tensor,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    *,
    size: int,
    epsilon: float = 0.0,
    offset: float = 0.0,
) -> None:
    """RMSNorm of every head where there are weights for it, then rotary embedding, in place.

    Number i of a head turns with number i + rotated / 2; numbers from `rotated` on stay.

    Args:
        queries: `[rows, ..., heads * size]` float32, bfloat16 or float16, contiguous.
        keys: `[rows, ..., shared heads * size]` in the same dtype, contiguous.
        cosines: `[rows or 1, ..., rotated]` in any dtype.
        sines: the same.
        query_weight: `[size]`, of the queries' norm.
        key_weight: `[size]`, of the keys' norm.
        size: of a head.
        epsilon: of both norms.
        offset: of both norms.

    Raises:
        UsageError: a tensor does not fit.
        KernelUnavailable: no compiled module.
    """
    tables = (export(ready(cosines, queries.dtype)), export(ready(sines, queries.dtype)))
    weights = (given(query_weight), given(key_weight))
    _run("rotate", export(queries), export(keys), *tables, *weights, queries.shape[0], size, epsilon, offset)


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float, seen: Tensor | None = None) -> Tensor:
    """`softmax(scale q k) v` for one token of every row.

    Args:
        queries: `[rows, heads, size]`, with dimensions of 1 anywhere, float32, bfloat16 or float16.
        keys: `[rows, shared heads, tokens, size]` in the same dtype; neighbouring heads have one in common. Where heads
            lie apart nothing is copied, as long as the tokens of each lie one after the other.
        values: `[rows, shared heads, tokens, value size]` in the same dtype.
        scale: of the products.
        seen: `[rows, tokens]` bool, which keys a row sees; all by default.

    Returns:
        `[rows, heads * value size]`; zeros where a row sees nothing.

    Raises:
        UsageError: a tensor does not fit the others.
        KernelUnavailable: no compiled module.
    """
    rows, _, _, size = keys.shape
    out = queries.new_empty(rows, queries.numel() // max(1, rows * size) * values.shape[3])
    given_keys = (export(_heads(keys)), export(_heads(values)))
    mask = None if seen is None else export(ready(seen, seen.dtype).view(torch.uint8))
    _run("attend", export(ready(queries, queries.dtype)), *given_keys, mask, export(out), scale, threads())
    return out


def _heads(tensor: Tensor) -> Tensor:
    """Keys or values as the native module wants them; themselves when they are so already."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor if tensor.stride(3) == 1 and tensor.stride(2) == tensor.shape[3] else tensor.contiguous()


def bits_of(what: str, weight: Tensor) -> Any:
    """A bfloat16 matrix for the native module, which takes its bits.

    Raises:
        UsageError: another dtype.
    """
    if weight.dtype != torch.bfloat16:
        raise UsageError(f"cpu {what}: weight: expected bfloat16, found {weight.dtype}")
    return export(ready(weight, weight.dtype).view(torch.uint16))


def _run(name: str, *arguments: Any) -> None:
    try:
        getattr(native(), name)(*arguments)
    except ValueError as error:
        raise UsageError(f"cpu {name}: {error}") from None
