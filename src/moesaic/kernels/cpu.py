"""Packed matrices on CPUs with the native kernels of `native/`: the signatures of `kernels.reference`, at memory speed.

Activations are quantized to int8 on the way in (`precision="exact"` keeps them float32). Works without the compiled
module in the sense that `available()` says no; everything else then raises `KernelUnavailable`. The operators are
known to torch as `moesaic::cpu_linear` and `moesaic::cpu_experts`, for inference only: they have no gradient.
"""

from __future__ import annotations

import importlib
import itertools
import os
import weakref
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import KernelUnavailable, UsageError
from moesaic.kernels import reference
from moesaic.kernels.layer import ExpertEntry, ExpertLayer, tokens_by_expert
from moesaic.packing.layout import MatrixLayout
from moesaic.records import STORED_WIDTH

NAME = "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PRECISIONS = ("int8", "exact")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "swiglu_clamped")

# several microseconds a tensor cheaper than letting the native module ask the tensor for it
_export = torch.utils.dlpack.to_dlpack  # type: ignore[attr-defined]

_native: Any
_missing: str
try:
    _native, _missing = importlib.import_module("moesaic.kernels._cpu"), ""
except ImportError as error:
    _native, _missing = None, f"the compiled module is not there ({error}); build it with `make native`"


def available() -> tuple[bool, str]:
    """Whether the kernels can run, and with what or why not.

    Raises:
        KernelUnavailable: `MOESAIC_CPU_ISA` names an instruction set that is unknown or that the CPU lacks.
    """
    if _native is None:
        return False, _missing
    return True, f"instruction set {isa()}, {threads()} threads"


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
    wanted = os.environ.get("MOESAIC_NUM_THREADS")
    if not wanted:
        return torch.get_num_threads()
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UsageError(f"MOESAIC_NUM_THREADS={wanted}: give a number of threads, 1 or more")
    return int(wanted)


def linear(
    x: Tensor, blob: Tensor, layout: MatrixLayout, bias: Tensor | None = None, *, precision: str = "int8"
) -> Tensor:
    """`x W^T + b` with a packed `W`; see `kernels.reference.linear`.

    Args:
        x: `[..., columns]`; other dtypes than float32, bfloat16 and float16 go to the reference backend.
        blob: `[layout.total_bytes]` uint8.
        layout: shape and width of `W`.
        bias: `[rows]` or None.
        precision: `"int8"` or `"exact"`, of the activations.
    """
    if x.dtype not in DTYPES:
        return reference.linear(x, blob, layout, bias)
    size = (layout.rows, layout.columns, layout.bits, layout.group_size, layout.symmetric)
    operator = _cpu_linear if _is_plain(x) else torch.ops.moesaic.cpu_linear
    return operator(x, blob, bias, *size, _is_exact(precision))


def experts(
    x: Tensor, top_k_index: Tensor, top_k_weights: Tensor, layer: ExpertLayer, *, precision: str = "int8"
) -> Tensor:
    """A whole expert layer; see `kernels.reference.experts`.

    What is known of `layer` is looked up once and kept while the object lives: hand in the same object every time.
    Experts of width 16 and activations that the native code does not know take a slower way through torch.
    """
    if x.dtype not in DTYPES:
        return reference.experts(x, top_k_index, top_k_weights, layer)
    exact = _is_exact(precision)
    if layer.activation.kind not in ACTIVATIONS:
        return _by_hand(x, top_k_index, top_k_weights, layer, exact=exact, only=None).to(x.dtype)
    stored = _stored_experts(layer)
    if not stored:
        operator = _cpu_experts if _is_plain(x) else torch.ops.moesaic.cpu_experts
        return operator(x, top_k_index, top_k_weights, _number_of(layer), exact)
    return _mixed(x, top_k_index, top_k_weights, layer, stored, exact=exact)


def _is_plain(x: Tensor) -> bool:
    """Whether the call can go straight to the kernel: torch's dispatcher costs more than a small layer."""
    return type(x) is Tensor and not torch.compiler.is_compiling()


def _is_exact(precision: str) -> bool:
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is unknown; give one of {PRECISIONS}")
    return precision == "exact"


# Operators --------------------------------------------------------------------------------------------------------

_library: Any = torch.library.Library("moesaic", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "cpu_linear(Tensor x, Tensor blob, Tensor? bias, int rows, int columns, int bits, int group_size, "
    "bool symmetric, bool exact) -> Tensor"
)
_library.define("cpu_experts(Tensor x, Tensor index, Tensor weights, int layer, bool exact) -> Tensor")


def _cpu_linear(  # noqa: PLR0917 (the operator's schema)
    x: Tensor,
    blob: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    bits: int,
    group_size: int,
    symmetric: bool,
    exact: bool,
) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1]).contiguous()
    out = flat.new_empty(flat.shape[0], rows)
    wide = None if bias is None else bias.detach().float().contiguous()
    given = None if wide is None else _export(wide)
    native().linear(
        _export(flat), _export(blob), given, _export(out), rows, columns, bits, group_size, symmetric, exact, threads()
    )
    return out.view(*x.shape[:-1], rows)


def _cpu_experts(x: Tensor, index: Tensor, weights: Tensor, layer: int, exact: bool) -> Tensor:
    flat = x.detach().contiguous()
    out = torch.empty_like(flat)
    places = index.to(torch.int64).contiguous()
    shares = weights.detach().float().contiguous()
    _layers[layer].run(_export(flat), _export(places), _export(shares), _export(out), exact, threads())
    return out


def _fake_linear(x: Tensor, _blob: Tensor, _bias: Tensor | None, rows: int, *_rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def _fake_experts(x: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _name, _real, _fake in (("cpu_linear", _cpu_linear, _fake_linear), ("cpu_experts", _cpu_experts, _fake_experts)):
    _library.impl(_name, _real, "CPU")
    torch.library.register_fake(f"moesaic::{_name}", _fake)


# Layers -----------------------------------------------------------------------------------------------------------

_numbers = itertools.count()
_layers: dict[int, Any] = {}  # number -> native layer: operators take numbers, tensors and nothing else
_number_by_id: dict[int, int] = {}  # id of an ExpertLayer that lives -> its number


def _number_of(layer: ExpertLayer) -> int:
    """The number under which operators know the layer."""
    number = _number_by_id.get(id(layer))
    return _register(layer) if number is None else number


# For torch.compile the number is a constant, not something to trace.
_number_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _register(layer: ExpertLayer) -> int:
    number = next(_numbers)
    _layers[number] = _native_layer(layer)
    _number_by_id[id(layer)] = number
    weakref.finalize(layer, _forget, id(layer), number)
    return number


def _forget(identity: int, number: int) -> None:
    _number_by_id.pop(identity, None)
    _layers.pop(number, None)


def _native_layer(layer: ExpertLayer) -> Any:
    activation, shape = layer.activation, layer.gate_up.layout
    return native().Layer(
        hidden=shape.columns,
        intermediate=shape.rows,
        gated=shape.matrices == 2,
        group_size=shape.group_size,
        symmetric=shape.symmetric,
        gate_up_widths=list(layer.gate_up.widths),
        gate_up=_packed(layer.gate_up),
        down_widths=list(layer.down.widths),
        down=_packed(layer.down),
        activation=activation.kind,
        alpha=activation.alpha,
        limit=activation.limit,
        gate_up_bias=_bias(layer.gate_up_bias),
        down_bias=_bias(layer.down_bias),
    )


def _packed(entry: ExpertEntry) -> dict[int, Tensor]:
    return {width: tensor for width, tensor in entry.tensors.items() if width != STORED_WIDTH}


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()


# The slow ways ----------------------------------------------------------------------------------------------------


def _stored_experts(layer: ExpertLayer) -> frozenset[int]:
    """Experts with an entry that is not packed."""
    if STORED_WIDTH not in layer.gate_up.tensors and STORED_WIDTH not in layer.down.tensors:
        return frozenset()
    widths = zip(layer.gate_up.widths, layer.down.widths, strict=True)
    return frozenset(expert for expert, pair in enumerate(widths) if STORED_WIDTH in pair)


def _mixed(
    x: Tensor, index: Tensor, weights: Tensor, layer: ExpertLayer, stored: frozenset[int], *, exact: bool
) -> Tensor:
    """Packed experts natively, the others one by one."""
    places = torch.tensor([-1 if e in stored else e for e in range(layer.experts)])
    inside = (index >= 0) & (index < layer.experts)
    packed = torch.where(inside, places[index.clamp(0, layer.experts - 1)], -1)
    out = torch.ops.moesaic.cpu_experts(x.float(), packed, weights, _number_of(layer), exact)
    return (out + _by_hand(x, index, weights, layer, exact=exact, only=stored)).to(x.dtype)


def _by_hand(
    x: Tensor, index: Tensor, weights: Tensor, layer: ExpertLayer, *, exact: bool, only: frozenset[int] | None
) -> Tensor:
    """The layer, or those experts of it, one expert after the other. float32 `[tokens, hidden]`"""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for expert, token, place in tokens_by_expert(index, layer.experts):
        if only is not None and expert not in only:
            continue
        hidden = _entry(x[token].float(), layer.gate_up, expert, exact=exact)
        if layer.gate_up_bias is not None:
            hidden = hidden + layer.gate_up_bias[expert].float()
        hidden = layer.activation.function(hidden)
        result = _entry(hidden, layer.down, expert, exact=exact)
        if layer.down_bias is not None:
            result = result + layer.down_bias[expert].float()
        out.index_add_(0, token, result * weights[token, place, None].float())
    return out


def _entry(x: Tensor, entry: ExpertEntry, expert: int, *, exact: bool) -> Tensor:
    """`[tokens, columns]` through all matrices of an entry, side by side. `[tokens, matrices * rows]`"""
    if entry.widths[expert] == STORED_WIDTH:
        return torch.nn.functional.linear(x, entry.stored(expert).to(x.dtype))
    precision = "exact" if exact else "int8"
    blobs = [entry.blob(expert, matrix) for matrix in range(entry.matrices)]
    return torch.cat([linear(x, blob, layout, precision=precision) for blob, layout in blobs], dim=-1)
