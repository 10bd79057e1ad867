"""Random arguments and cut buffers at the native module: a refusal or a result, never a read or write outside.

Every buffer ends, or begins, at a page that may not be touched, so that a single byte too far ends the process. The
work is done by a process of its own; when it dies, this one says with which seed.

    python -m tests.native.fuzz --seconds 60              # a new seed every time
    python -m tests.native.fuzz --seed 1234 --count 1     # one case again
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import math
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
ARENA = 4 << 20
WIDTHS = (1, 2, 3, 4, 8)
GROUPS = (32, 64, 128)
PRECISIONS = ("int8", "int8-single", "exact")
# what is called, and how often
KINDS = {
    "layer": 0.35,
    "linear": 0.15,
    "decoder_layer": 0.1,
    **dict.fromkeys(("mask_router", "dense", "rms_norm", "route", "rotate"), 0.06),
    "attend": 0.1,
}
RESULTS = ("out", "out_index", "out_weights", "logits", "index", "shares")
ODD_NUMBERS = (-(2**63), -1, 0, 1, 15, 16, 17, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**40, 2**63 - 1)


def load_module(path: str | None) -> Any:
    """The compiled module, without the package around it (which would load torch)."""
    if path is None:
        package = importlib.util.find_spec("moesaic")
        assert package is not None
        places = [Path(place) / "kernels" for place in package.submodule_search_locations or ()]
        path = str(next(file for place in places for file in place.glob("_cpu.*.so")))
    spec = importlib.util.spec_from_file_location("moesaic.kernels._cpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Arenas:
    """Memory between pages that may not be touched, used again for every case."""

    def __init__(self, count: int = 64) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._maps = [mmap.mmap(-1, ARENA + 2 * PAGE) for _ in range(count)]
        self._starts = []
        for memory in self._maps:
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for guard in (start, start + PAGE + ARENA):
                assert libc.mprotect(guard, PAGE, 0) == 0
            self._starts.append(start + PAGE)
        self._next = 0

    def clear(self) -> None:
        """Start over: what was handed out may be handed out again."""
        self._next = 0

    def array(self, random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array at one end of an arena, misaligned when its size makes it so."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        assert size <= ARENA
        start = self._starts[self._next] + (ARENA - size if random.random() < 0.8 else 0)
        self._next += 1
        memory = (ctypes.c_uint8 * max(size, 1)).from_address(start if size else self._starts[0])
        return np.frombuffer(memory, np.uint8, size).view(dtype).reshape(shape)


def blob_bytes(rows: int, columns: int, bits: int, group: int, symmetric: bool) -> int:
    """Bytes of a packed matrix (docs/format.md)."""
    blocks, groups = -(-rows // 16), -(-columns // group)
    parameters = 16 if symmetric or bits == 1 else 32
    regions = (32 * blocks, blocks * groups * parameters, blocks * groups * 2 * group * bits)
    return sum(-(-region // 64) * 64 for region in regions)


class Case:
    """One call with arguments that are right, and the ways to spoil them."""

    def __init__(self, arenas: Arenas, seed: int) -> None:
        arenas.clear()
        self.arenas, self.random = arenas, np.random.default_rng(seed)

    def number(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def pick(self, values: Any) -> Any:
        return values[self.number(0, len(values) - 1)]

    def garbage(self, *shape: int) -> np.ndarray:
        """uint8 of any value: scales that are NaN or infinite among them."""
        array = self.arenas.array(self.random, shape, np.uint8)
        array[...] = self.random.integers(0, 256, shape, dtype=np.uint8)
        return array

    def floats(self, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        array = self.arenas.array(self.random, shape, dtype)
        array[...] = self.random.standard_normal(shape)
        return array

    def size(self) -> int:
        """Mostly small, sometimes across the borders of slices and chunks."""
        return self.number(1, 40) if self.random.random() < 0.7 else self.number(41, 700)

    def rows(self) -> int:
        """Of activations: mostly few, sometimes enough for the kernels that unpack codes first."""
        return self.number(0, 30) if self.random.random() < 0.9 else self.number(60, 90)

    def linear(self) -> dict[str, Any]:
        """Arguments of the product with one matrix or several beside each other."""
        columns, tokens = self.size(), self.rows()
        rows = [self.size() for _ in range(self.pick((1, 1, 2, 3)))]
        bits, group, symmetric = self.pick(WIDTHS), self.pick(GROUPS), self.random.random() < 0.5
        dtype = self.pick((np.float32, np.float16))
        return {
            "x": self.floats(tokens, columns, dtype=dtype),
            "blobs": [self.garbage(blob_bytes(each, columns, bits, group, symmetric)) for each in rows],
            "biases": [self.floats(each) if self.random.random() < 0.5 else None for each in rows],
            "outs": [self.floats(tokens, each, dtype=dtype) for each in rows],
            "rows": rows,
            "columns": columns,
            "bits": bits,
            "group_size": group,
            "symmetric": symmetric,
            "precision": self.pick(PRECISIONS),
            "threads": self.number(1, 4),
        }

    def layer(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of Layer and of its run."""
        hidden, intermediate, experts = self.number(1, 200), self.number(1, 200), self.number(1, 6)
        gated, group, symmetric = self.random.random() < 0.7, self.pick(GROUPS), self.random.random() < 0.5
        widths = [[self.pick((*WIDTHS, 16)) for _ in range(experts)] for _ in range(2)]
        packed = [e for e in range(experts) if 16 not in (widths[0][e], widths[1][e])]
        tokens, top_k = self.rows(), self.number(0, 3)
        dtype = self.pick((np.float32, np.float16))
        matrices = 1 + gated
        index = self.arenas.array(self.random, (tokens, top_k), np.int64)
        index[...] = self.random.choice([-1, *packed], (tokens, top_k))

        def blobs(widths: list[int], matrices: int, rows: int, columns: int) -> list[np.ndarray]:
            return [
                self.garbage(widths.count(bits), matrices * blob_bytes(rows, columns, bits, group, symmetric))
                for bits in WIDTHS
                if bits in widths
            ]

        made = {
            "hidden": hidden,
            "intermediate": intermediate,
            "gated": gated,
            "group_size": group,
            "symmetric": symmetric,
            "gate_up_widths": widths[0],
            "down_widths": widths[1],
            "activation": self.pick(("silu", "gelu", "gelu_tanh", "relu", *["swiglu_clamped"] * gated)),
            "alpha": 1.702,
            "limit": 7.0,
        }
        run = {
            "x": self.floats(tokens, hidden, dtype=dtype),
            "index": index,
            "weights": self.floats(tokens, top_k),
            "out": self.floats(tokens, hidden, dtype=dtype),
            "gate_up": blobs(widths[0], matrices, intermediate, hidden),
            "down": blobs(widths[1], 1, hidden, intermediate),
            "gate_up_bias": self.floats(experts, matrices * intermediate) if self.random.random() < 0.5 else None,
            "down_bias": self.floats(experts, hidden) if self.random.random() < 0.5 else None,
            "precision": self.pick(PRECISIONS),
            "threads": self.number(1, 4),
        }
        return made, run

    def decoder_layer(self) -> dict[str, dict[str, Any]]:
        """Arguments of a decoder layer's methods, by name; its experts are those of `layer`, without width 16."""
        layer, experts_run = self.layer()
        while 16 in (*layer["gate_up_widths"], *layer["down_widths"]):
            self.arenas.clear()
            layer, experts_run = self.layer()
        hidden, experts = layer["hidden"], len(layer["gate_up_widths"])
        rows, shared, group_heads, size = (
            self.number(1, 4),
            self.number(1, 3),
            self.number(1, 3),
            2 * self.number(1, 20),
        )
        heads, bits, dtype = shared * group_heads, self.pick(WIDTHS), np.float16
        shapes = [(heads * size, hidden), (shared * size, hidden), (shared * size, hidden), (hidden, heads * size)]
        grid, half = (layer["group_size"], layer["symmetric"]), self.random.random() < 0.5
        joined = self.random.random() < 0.5
        used, extra = self.number(0, 40), self.number(0, 9)
        of_tables = (self.pick((1, rows)), 2 * self.number(1, size // 2))
        seen = self.arenas.array(self.random, (rows, used + 1), np.uint8)
        seen[...] = self.random.random((rows, used + 1)) < self.pick((0.0, 0.5, 0.99))
        top_k = self.number(1, experts)
        names = ("gate_up", "down", "gate_up_bias", "down_bias")
        return {
            "layer": layer,
            "decoder_layer": {
                "hidden": hidden,
                "heads": heads,
                "shared": shared,
                "size": size,
                "group_size": grid[0],
                "symmetric": grid[1],
                "bits": bits,
                "attention_norm": self.floats(hidden),
                "experts_norm": self.floats(hidden, dtype=dtype),
                "epsilon": 1e-6,
                "offset": self.pick((0.0, 1.0)),
                "blobs": [self.garbage(blob_bytes(*shape, bits, *grid)) for shape in shapes],
                "biases": [self.floats(shape[0]) if self.random.random() < 0.3 else None for shape in shapes],
                "query_norm": self.floats(heads * size if joined else size) if half else None,
                "key_norm": self.floats(shared * size if joined else size) if half else None,
                "joins_heads": joined,
                "head_epsilon": 1e-6,
                "head_offset": 0.0,
                "scale": 0.3,
            },
            "set_experts": {
                **{name: experts_run[name] for name in names},
                "router": self.garbage(experts, 2 * hidden).view(np.uint16),
                "logit_bias": self.floats(experts) if self.random.random() < 0.3 else None,
                "choice_bias": self.floats(experts) if self.random.random() < 0.3 else None,
                "top_k": top_k,
                "sigmoid": self.random.random() < 0.5,
                "normalises": self.random.random() < 0.5,
                "groups": 1,
                "kept_groups": 1,
                "scale": 1.0,
                "rounds_logits": self.random.random() < 0.5,
            },
            "set_mask_router": self._mask_state(hidden, top_k, experts),
            "run": {
                "x": self.floats(rows, 1, hidden, dtype=dtype),
                "cosines": self.floats(*of_tables, dtype=dtype),
                "sines": self.floats(*of_tables, dtype=dtype),
                "keys": self.floats(rows, shared, used + 1 + extra, size, dtype=dtype),
                "values": self.floats(rows, shared, used + 1 + extra, size, dtype=dtype),
                "used": used,
                "seen": seen if self.random.random() < 0.5 else None,
                "out": self.floats(rows, 1, hidden, dtype=dtype),
                "normed": self.floats(rows, 1, hidden, dtype=dtype) if self.random.random() < 0.3 else None,
                "precision": self.pick(PRECISIONS),
                "threads": self.number(1, 4),
            },
        }

    def _mask_state(self, hidden: int, places: int, experts: int) -> dict[str, Any]:
        """What OTP decides with; a NaN among its numbers now and then."""
        width, masks, sees_experts = self.number(1, 20), self.number(1, 20), self.random.random() < 0.5
        candidates = self.floats(masks, places)
        candidates[...] = candidates > 0
        return {
            "candidates": candidates,
            "project": self.floats(width, hidden),
            "inner": self.floats(2 * width, width + places),
            "inner_bias": self.floats(2 * width),
            "outer": self.floats(masks - 1, 2 * width),
            "slope": self.floats(masks - 1),
            "bias": self.floats(masks - 1),
            "table": self.floats(places, experts, 2 * width) if sees_experts else None,
            "prefer": self.floats(places, experts) if sees_experts else None,
            "cost": self.pick((0.0, 1.0, float("nan"), float("inf"))),
            "sees_hidden": self.random.random() < 0.5,
            "sees_weights": self.random.random() < 0.5,
        }

    def mask_router(self) -> dict[str, Any]:
        """Arguments of OTP's decision; a NaN among the weights now and then."""
        hidden, places, experts, tokens = self.number(1, 100), self.number(1, 8), self.number(1, 20), self.rows()
        index = self.arenas.array(self.random, (tokens, places), np.int64)
        index[...] = self.random.integers(0, experts, (tokens, places))
        weights = self.floats(tokens, places)
        if weights.size and self.random.random() < 0.2:
            weights.flat[self.number(0, weights.size - 1)] = np.nan
        return {
            "x": self.floats(tokens, hidden, dtype=self.pick((np.float32, np.float16))),
            "index": index,
            "weights": weights,
            "out_index": self.arenas.array(self.random, (tokens, places), np.int64),
            "out_weights": self.floats(tokens, places),
            **self._mask_state(hidden, places, experts),
            "experts": experts,
            "threads": self.number(1, 4),
        }

    def dense(self) -> dict[str, Any]:
        """Arguments of the product with a bfloat16 matrix that is not packed."""
        rows, columns, tokens = self.size(), self.size(), self.rows()
        dtype = self.pick((np.float32, np.float16))
        return {
            "x": self.floats(tokens, columns, dtype=dtype),
            "weight": self.garbage(rows, 2 * columns).view(np.uint16),
            "out": self.floats(tokens, rows, dtype=dtype),
            "threads": self.number(1, 4),
        }

    def rms_norm(self) -> dict[str, Any]:
        """Arguments of a norm of rows."""
        columns, tokens = self.size(), self.rows()
        dtype = self.pick((np.float32, np.float16))
        return {
            "x": self.floats(tokens, columns, dtype=dtype),
            "weight": self.floats(columns, dtype=self.pick((np.float32, np.float16))),
            "out": self.floats(tokens, columns, dtype=dtype),
            "epsilon": 1e-6,
            "offset": self.pick((0.0, 1.0)),
            "threads": self.number(1, 4),
        }

    def route(self) -> dict[str, Any]:
        """Arguments of a router, its weights of any bits: NaN among them."""
        groups, of_group, hidden, tokens = self.number(1, 4), self.number(1, 12), self.size(), self.number(0, 5)
        kept, experts = self.number(1, groups), groups * of_group
        top_k = self.number(1, kept * of_group)
        index = self.arenas.array(self.random, (tokens, top_k), np.int64)
        return {
            "x": self.floats(tokens, hidden, dtype=self.pick((np.float32, np.float16))),
            "weight": self.garbage(experts, 2 * hidden).view(np.uint16),
            "logit_bias": self.floats(experts) if self.random.random() < 0.5 else None,
            "choice_bias": self.floats(experts) if self.random.random() < 0.5 else None,
            "logits": self.floats(tokens, experts, dtype=self.pick((np.float32, np.float16))),
            "index": index,
            "shares": self.floats(tokens, top_k),
            "sigmoid": self.random.random() < 0.5,
            "normalises": self.random.random() < 0.5,
            "groups": groups,
            "kept_groups": kept,
            "scale": 1.5,
            "threads": self.number(1, 4),
        }

    def rotate(self) -> dict[str, Any]:
        """Arguments of norms of heads and rotary embedding."""
        rows, size, dtype = self.number(1, 4), 2 * self.number(1, 80), self.pick((np.float32, np.float16))
        of_tables = (self.pick((1, rows)), 2 * self.number(1, size // 2))
        normed = self.random.random() < 0.5
        return {
            "queries": self.floats(rows, self.number(1, 5) * size, dtype=dtype),
            "keys": self.floats(rows, self.number(1, 3) * size, dtype=dtype),
            "cosines": self.floats(*of_tables, dtype=dtype),
            "sines": self.floats(*of_tables, dtype=dtype),
            "query_weight": self.floats(size) if normed else None,
            "key_weight": self.floats(size) if normed else None,
            "rows": rows,
            "size": size,
            "epsilon": 1e-6,
            "offset": 0.0,
        }

    def attend(self) -> dict[str, Any]:
        """Arguments of the attention of single tokens; keys of any bits now and then."""
        rows, shared, group, tokens = self.number(1, 3), self.number(1, 3), self.number(1, 5), self.number(1, 600)
        size, value_size = self.number(1, 80), self.number(1, 80)
        dtype = self.pick((np.float32, np.float16))
        keys = self.floats(rows, shared, tokens, size, dtype=dtype)
        if self.random.random() < 0.2:
            keys = self.garbage(rows, shared, tokens, size * keys.itemsize).view(dtype)
        seen = self.arenas.array(self.random, (rows, tokens), np.uint8)
        seen[...] = self.random.random((rows, tokens)) < self.pick((0.0, 0.5, 0.99))
        return {
            "queries": self.floats(rows, shared * group, size, dtype=dtype),
            "keys": keys,
            "values": self.floats(rows, shared, tokens, value_size, dtype=dtype),
            "seen": seen if self.random.random() < 0.5 else None,
            "out": self.floats(rows, shared * group * value_size, dtype=dtype),
            "scale": 0.3,
            "threads": self.number(1, 4),
        }

    def spoiled(self, value: Any) -> Any:
        """Something else in the place of an argument."""
        if isinstance(value, np.ndarray):
            return self._spoiled_array(value)
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self.pick(ODD_NUMBERS) if self.random.random() < 0.5 else value + self.number(-64, 64)
        if isinstance(value, list) and value:
            place = self.number(0, len(value) - 1)
            change = self.pick(("drop", "repeat", "swap", "spoil"))
            others = {"drop": [], "repeat": [value[place]] * 2, "swap": [value[-1 - place]]}
            return [*value[:place], *others.get(change, [self.spoiled(value[place])]), *value[place + 1 :]]
        return self.pick(("", "int4", None, -1, 3.5))

    def _spoiled_array(self, array: np.ndarray) -> Any:
        change = self.pick(("cut", "longer", "shape", "strided", "dtype", "shifted", "values", "rank", "none"))
        size = array.nbytes
        if change in {"cut", "longer"} and array.ndim:
            less = self.pick((1, 2, 4, 63, 64, 65)) if change == "cut" else -self.pick((1, 4, 64))
            length = max(0, array.shape[-1] - less)
            shape = (*array.shape[:-1], length)
            if math.prod(shape) * array.itemsize > ARENA:  # many rows of few columns that became many times longer
                return array
            return self.arenas.array(self.random, shape, array.dtype)
        if change == "shape":
            return array.reshape(array.shape[::-1])
        if change == "strided":
            return array[..., ::2] if self.random.random() < 0.5 else array.T
        if change == "dtype":
            return _other_dtype(array, np.dtype(self.pick((np.int8, np.uint8, np.int16, np.float16))))
        if change == "shifted" and size:
            return self.garbage(size + 64)[1 : size + 1].view(array.dtype).reshape(array.shape)
        if change == "values" and array.dtype == np.int64 and size:
            array.flat[self.number(0, array.size - 1)] = self.pick(ODD_NUMBERS)
            return array
        return array.ravel() if change == "rank" else None if change == "none" else array


def _other_dtype(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same bytes as other numbers, in rows of the same length in bytes where that comes out even."""
    raw = np.ascontiguousarray(array).tobytes()
    whole = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype=dtype).copy()
    even = array.ndim > 1 and array.size and array.shape[-1] * array.itemsize % dtype.itemsize == 0
    return whole.reshape(*array.shape[:-1], -1) if even else whole


def refused(call: Any, arguments: dict[str, Any]) -> bool:
    """Whether the arguments are refused; anything but a refusal or a result is an error here."""
    try:
        call(**arguments)
    except (ValueError, TypeError):
        return True
    return False


def run_case(module: Any, arenas: Arenas, seed: int) -> bool:
    """One case; whether it was refused."""
    case = Case(arenas, seed)
    module.use_isa(case.pick(module.isas()))
    kind = case.random.choice(list(KINDS), p=list(KINDS.values()))
    if kind == "decoder_layer":
        return run_decoder_layer(module, case)
    made, arguments = case.layer() if kind == "layer" else (None, getattr(case, kind)())
    spoil = case.random.random() < 0.7
    if spoil and made is not None and case.random.random() < 0.3:
        name = case.pick(list(made))
        made[name] = case.spoiled(made[name])
    elif spoil:
        for _ in range(case.number(1, 2)):
            name = case.pick(list(arguments))
            arguments[name] = case.spoiled(arguments[name])
    if made is None:
        call = getattr(module, kind)
    else:
        if refused(module.Layer, made):
            assert spoil, "arguments that are right were refused"
            return True
        call = module.Layer(**made).run
    was_refused = refused(call, arguments)
    assert spoil or not was_refused, "arguments that are right were refused"
    if not spoil and "threads" in arguments:
        results = [arguments[name] for name in RESULTS if name in arguments] + arguments.get("outs", [])
        first = [result.copy() for result in results]
        call(**(arguments | {"threads": 1}))
        for one, other in zip(first, results, strict=True):
            assert np.array_equal(one, other, equal_nan=True), "the result depends on the number of threads"
    return was_refused


def run_decoder_layer(module: Any, case: Case) -> bool:
    """A case of several calls, of which one may be spoiled; what was refused leaves a layer that still runs."""
    stages = case.decoder_layer()
    spoiled = case.pick(list(stages)[1:]) if case.random.random() < 0.7 else ""
    if spoiled:
        name = case.pick(list(stages[spoiled]))
        stages[spoiled][name] = case.spoiled(stages[spoiled][name])
    if refused(module.DecoderLayer, stages["decoder_layer"]):
        assert spoiled == "decoder_layer", "arguments that are right were refused"
        return True
    layer, run = module.DecoderLayer(**stages["decoder_layer"]), stages["run"]
    refusals = 0
    for stage in ("set_experts", "set_mask_router"):
        if stage == "set_experts":
            stages[stage]["layer"] = module.Layer(**stages["layer"])
        refusals += refused(getattr(layer, stage), stages[stage])
        assert spoiled or not refusals, "arguments that are right were refused"
    refusals += refused(layer.run, run)
    assert spoiled or not refusals, "arguments that are right were refused"
    if not spoiled:
        first = run["out"].copy()
        layer.run(**(run | {"threads": 1}))
        assert np.array_equal(first, run["out"], equal_nan=True), "the result depends on the number of threads"
        if run["normed"] is None:
            given = {name: value for name, value in run.items() if name != "normed"}
            rooms = {name: [run[name]] * 2 for name in ("keys", "values")}
            module.run_layers([layer, layer], **(given | rooms))
    return bool(refusals)


def work(options: argparse.Namespace) -> None:
    """Cases from the seed on, until time or count is up; the number of the current one is in the progress file."""
    module, arenas = load_module(options.module), Arenas()
    progress = os.open(options.progress, os.O_WRONLY)
    end, refusals, cases = time.monotonic() + options.seconds, 0, 0
    while cases < options.count and time.monotonic() < end:
        os.pwrite(progress, f"{options.seed + cases:20d}".encode(), 0)
        refusals += run_case(module, arenas, options.seed + cases)
        cases += 1
    print(f"fuzz: {cases} cases from seed {options.seed}, {refusals} refused, {cases - refusals} computed, no crash")
    assert options.count < 100 or 0 < refusals < cases, "a fuzz target that refuses all or nothing tests nothing"


def main() -> int:
    """Watch over a process that does the work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=10**9, help="stop after so many cases")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--module", help="path of the compiled module; default: the package's")
    parser.add_argument("--progress", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.progress:
        work(options)
        return 0
    seed = time.time_ns() % 10**9 * 1000 if options.seed is None else options.seed
    print(f"fuzz: seed {seed}", flush=True)
    with tempfile.NamedTemporaryFile() as progress:
        own = ["--seed", str(seed), "--progress", progress.name]
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.native.fuzz", *sys.argv[1:], *own]
        done = subprocess.run(command, check=False)
        reached = progress.read().decode().strip()
    if done.returncode != 0:
        print(f"fuzz: ended with {done.returncode}; again: python -m tests.native.fuzz --seed {reached} --count 1")
    return min(1, abs(done.returncode))


if __name__ == "__main__":
    sys.exit(main())
