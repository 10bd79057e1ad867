"""Packed matrices on CPUs with the native kernels of `native/`: the signatures of `kernels.reference`, at memory speed.

Activations are quantized to int8 on the way in. Three precisions:

- `"int8"`: int8 numbers with a scale for every eight activations or, with many rows, one for a group, and second
  numbers for the largest activations. The result of a layer is within 1 % of the exact one
  (docs/decisions/0007-int8-activations.md).
- `"int8-single"`: no second numbers and coarser scales. With many rows an eighth less time, 1 to 2 % off.
- `"exact"`: float32.

Works without the compiled module in the sense that `available()` says no; everything else then raises
`KernelUnavailable`. The operators are known to torch as `moesaic::cpu_linear` and `moesaic::cpu_experts`, for inference
only: they have no gradient.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import KernelUnavailable, UsageError
from moesaic.kernels import reference
from moesaic.kernels.layer import ExpertEntry, ExpertLayer, check_index, layer_from, read_spec, tokens_by_expert
from moesaic.packing.layout import MatrixLayout
from moesaic.records import STORED_WIDTH

NAME = "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PRECISIONS = ("int8", "int8-single", "exact")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "swiglu_clamped")

# several microseconds a tensor cheaper than letting the native module ask the tensor for it
export = torch.utils.dlpack.to_dlpack  # type: ignore[attr-defined]

_native: Any
_missing: str
try:
    _native, _missing = importlib.import_module("moesaic.kernels._cpu"), ""
except ImportError as error:
    _native, _missing = None, f"the compiled module is not there ({error}); install again with a C++20 compiler"
_environment: Callable[[str], str | None] = _native.environment if _native else os.environ.get


def available() -> tuple[bool, str]:
    """Whether the kernels can run, and with what or why not.

    Raises:
        KernelUnavailable: `MOESAIC_CPU_ISA` names an instruction set that is unknown or that the CPU lacks.
    """
    can_run, reason = is_ready()
    return can_run, f"instruction set {isa()}, {threads()} threads" if can_run else reason


def is_ready() -> tuple[bool, str]:
    """Whether the kernels can run, and why not; asked for every layer, so it does nothing else.

    Raises:
        KernelUnavailable: `MOESAIC_CPU_ISA` names an instruction set that is unknown or that the CPU lacks.
    """
    if _native is None:
        return False, _missing
    isa()
    return True, ""


def isa() -> str:
    """The instruction set in use: `avx512`, `avx2`, `neon` or `generic`.

    Raises:
        KernelUnavailable: no compiled module, or `MOESAIC_CPU_ISA` asks for what is not there.
    """
    try:
        return str(native().isa())
    except RuntimeError as error:
        raise KernelUnavailable(str(error)) from None


def native() -> ModuleType:
    """The compiled module.

    Raises:
        KernelUnavailable: it is not there.
    """
    if _native is None:
        raise KernelUnavailable(f"kernel backend cpu: {_missing}")
    return _native  # type: ignore[no-any-return]


def threads() -> int:
    """Threads that the kernels use: `MOESAIC_NUM_THREADS`, else torch's number.

    Raises:
        UsageError: the variable is not a positive number.
    """
    wanted = _environment("MOESAIC_NUM_THREADS")
    if not wanted:
        return torch.get_num_threads()
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UsageError(f"MOESAIC_NUM_THREADS={wanted}: give a number of threads, 1 or more")
    return int(wanted)


def precision_in_use(wanted: str | None = None) -> str:
    """The precision of the activations: `wanted`, else `MOESAIC_CPU_PRECISION`, else `"int8"`.

    Raises:
        UsageError: neither is one of `PRECISIONS`.
    """
    precision = wanted or _environment("MOESAIC_CPU_PRECISION") or "int8"
    if precision not in PRECISIONS:
        source = "precision" if wanted else "MOESAIC_CPU_PRECISION"
        raise UsageError(f"{source}: {precision!r} is unknown; give one of {', '.join(PRECISIONS)}")
    return precision


def linear(
    x: Tensor, blob: Tensor, layout: MatrixLayout, bias: Tensor | None = None, *, precision: str | None = None
) -> Tensor:
    """`x W^T + b` with a packed `W`; see `kernels.reference.linear`.

    Args:
        x: `[..., columns]`; other dtypes than float32, bfloat16 and float16 go to the reference backend.
        blob: `[layout.total_bytes]` uint8.
        layout: shape and width of `W`.
        bias: `[rows]` in one of those dtypes, or None.
        precision: of the activations, one of `PRECISIONS`; default: see `precision_in_use`.

    Raises:
        UsageError: a tensor does not fit the layout, or an unknown precision.
        KernelUnavailable: no compiled module.
    """
    if x.dtype not in DTYPES:
        return reference.linear(x, blob, layout, bias)
    size = (layout.rows, layout.columns, layout.bits, layout.group_size, layout.symmetric)
    run = _cpu_linear if _is_plain(x) else torch.ops.moesaic.cpu_linear
    return run(x, blob, bias, *size, precision)


def experts(
    x: Tensor, top_k_index: Tensor, top_k_weights: Tensor, layer: ExpertLayer, *, precision: str | None = None
) -> Tensor:
    """A whole expert layer; see `kernels.reference.experts`.

    Experts of width 16 and activations that the native code does not know take a slower way through torch.

    Args:
        x: `[tokens, hidden]`; other dtypes than float32, bfloat16 and float16 go to the reference backend.
        top_k_index: `[tokens, k]`; below 0 is an empty place.
        top_k_weights: `[tokens, k]`.
        layer: the packed layer.
        precision: of the activations, one of `PRECISIONS`; default: see `precision_in_use`.

    Raises:
        UsageError: a number of an expert that is not there, a tensor that does not fit, or an unknown precision.
        KernelUnavailable: no compiled module.
    """
    if x.dtype not in DTYPES:
        return reference.experts(x, top_k_index, top_k_weights, layer)
    if layer.activation.kind not in ACTIVATIONS:
        out = _one_by_one(x, top_k_index, top_k_weights, layer, precision=precision, only=range(layer.experts))
        return out.to(x.dtype)
    run = _cpu_experts if _is_plain(x) else torch.ops.moesaic.cpu_experts
    biases = (layer.gate_up_bias, layer.down_bias)
    return run(x, top_k_index, top_k_weights, layer.gate_up.ordered, layer.down.ordered, *biases, layer.spec, precision)


def _is_plain(x: Tensor) -> bool:
    """Whether the call can go straight to the kernel: torch's dispatcher costs more than a small layer."""
    return type(x) is Tensor and not torch.compiler.is_compiling()


# Operators --------------------------------------------------------------------------------------------------------
#
# They are functions of their arguments alone: nothing that they need is kept from call to call, so that a graph can be
# compiled, stored and run by another process. Changing the device or the memory of a tensor needs no word to anybody.

_library: Any = torch.library.Library("moesaic", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "cpu_linear(Tensor x, Tensor blob, Tensor? bias, int rows, int columns, int bits, int group_size, "
    "bool symmetric, str? precision) -> Tensor"
)
_library.define(
    "cpu_experts(Tensor x, Tensor index, Tensor weights, Tensor[] gate_up, Tensor[] down, Tensor? gate_up_bias, "
    "Tensor? down_bias, str spec, str? precision) -> Tensor"
)


def _cpu_linear(  # noqa: PLR0917 (the operator's schema)
    x: Tensor,
    blob: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    bits: int,
    group_size: int,
    symmetric: bool,
    precision: str | None,
) -> Tensor:
    flat = ready(x, x.dtype)
    if flat.dim() != 2:
        flat = flat.reshape(-1, x.shape[-1])
    out = flat.new_empty(flat.shape[0], rows)
    size = ([rows], columns, bits, group_size, symmetric)
    how = (precision_in_use(precision), threads())
    try:
        native().linear(export(flat), [export(blob)], [given(bias)], [export(out)], *size, *how)
    except ValueError as error:
        raise UsageError(f"cpu_linear: {error}") from None
    return out.view(*x.shape[:-1], rows) if x.dim() != 2 else out


def _cpu_experts(  # noqa: PLR0917 (the operator's schema)
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up: Sequence[Tensor],
    down: Sequence[Tensor],
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    spec: str,
    precision: str | None,
) -> Tensor:
    plan = plan_of(spec)
    if plan.stored:
        layer = layer_from(spec, gate_up, down, gate_up_bias, down_bias)
        check_index(index, layer.experts)
        alone = _one_by_one(x, index, weights, layer, precision=precision, only=plan.stored)
        index = plan.places.take(index.long() + 1)
        gate_up, down = gate_up[: plan.tensors[0]], down[: plan.tensors[1]]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    how = (precision_in_use(precision), threads())
    try:
        plan.layer.run(
            export(ready(x, x.dtype)),
            export(ready(index, torch.int64)),
            export(ready(weights, torch.float32)),
            export(out),
            [export(tensor) for tensor in gate_up],
            [export(tensor) for tensor in down],
            given(gate_up_bias),
            given(down_bias),
            *how,
        )
    except ValueError as error:
        raise UsageError(f"cpu_experts: {error}") from None
    return (out.float() + alone).to(x.dtype) if plan.stored else out


def _fake_linear(x: Tensor, _blob: Tensor, _bias: Tensor | None, rows: int, *_rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def _fake_experts(x: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _name, _real, _fake in (("cpu_linear", _cpu_linear, _fake_linear), ("cpu_experts", _cpu_experts, _fake_experts)):
    _library.impl(_name, _real, "CPU")
    torch.library.register_fake(f"moesaic::{_name}", _fake)


def ready(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as the native module wants it; itself when it is so already."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def given(bias: Tensor | None) -> Any:
    """A tensor that may be missing, for the native module."""
    return None if bias is None else export(ready(bias, bias.dtype))


@dataclass(frozen=True)
class Plan:
    """What follows from a layer's spec.

    Attributes:
        layer: the native module's view of it.
        stored: experts with an entry that is not packed.
        places: `[experts + 1]`: index + 1 -> index, or -1 where the expert is not packed.
        tensors: packed tensors of both entries.
    """

    layer: Any
    stored: frozenset[int]
    places: Tensor
    tensors: tuple[int, int]


@functools.cache
def plan_of(spec: str) -> Plan:
    """What the native module has to know of a layer, from `ExpertLayer.spec`."""
    first, second, activation = read_spec(spec)
    layer = native().Layer(
        hidden=first.columns,
        intermediate=first.rows,
        gated=first.matrices == 2,
        group_size=first.group_size,
        symmetric=first.symmetric,
        gate_up_widths=list(first.widths),
        down_widths=list(second.widths),
        activation=activation.kind,
        alpha=activation.alpha,
        limit=activation.limit,
    )
    widths = enumerate(zip(first.widths, second.widths, strict=True))
    stored = frozenset(expert for expert, pair in widths if STORED_WIDTH in pair)
    places = [-1, *(-1 if expert in stored else expert for expert in range(len(first.widths)))]
    tensors = tuple(len(set(entry.widths) - {STORED_WIDTH}) for entry in (first, second))
    return Plan(layer, stored, torch.tensor(places), (tensors[0], tensors[1]))


# The slow way -----------------------------------------------------------------------------------------------------


def _one_by_one(
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    layer: ExpertLayer,
    *,
    precision: str | None,
    only: Sequence[int] | frozenset[int],
) -> Tensor:
    """Some experts of the layer, one after the other. float32 `[tokens, hidden]`"""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for expert, token, place in tokens_by_expert(index, layer.experts):
        if expert not in only:
            continue
        hidden = _entry(x[token].float(), layer.gate_up, expert, precision)
        if layer.gate_up_bias is not None:
            hidden = hidden + layer.gate_up_bias[expert].float()
        hidden = layer.activation.function(hidden)
        result = _entry(hidden, layer.down, expert, precision)
        if layer.down_bias is not None:
            result = result + layer.down_bias[expert].float()
        out.index_add_(0, token, result * weights[token, place, None].float())
    return out


def _entry(x: Tensor, entry: ExpertEntry, expert: int, precision: str | None) -> Tensor:
    """`[tokens, columns]` through all matrices of an entry, side by side. `[tokens, matrices * rows]`"""
    if entry.widths[expert] == STORED_WIDTH:
        return torch.nn.functional.linear(x, entry.stored(expert).to(x.dtype))
    blobs = [entry.blob(expert, matrix) for matrix in range(entry.matrices)]
    return torch.cat([linear(x, blob, layout, precision=precision) for blob, layout in blobs], dim=-1)
