"""The native kernels against the reference backend in float64, on every instruction set that the machine has."""

from __future__ import annotations

import contextlib
import gc
import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import KernelUnavailable, UsageError
from moesaic.kernels import cpu, reference
from moesaic.kernels.layer import Activation, ExpertEntry, ExpertLayer, known_activation
from moesaic.packing.layout import EntryLayout, MatrixLayout, layout_of, pack, unpack
from moesaic.records import QuantizedWeight
from tests.kernels import rounding

IS_BUILT = cpu.available()[0]
ISAS = cpu.native().isas() if IS_BUILT else []
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 4e-3, torch.float16: 1e-3}  # of the result's own dtype
INT8, EXACT = 1e-2, 1e-5
SINGLE = 2e-2  # without spills
ROWS = st.integers(0, 30) | st.integers(
    60, 90
)  # of activations: for the kernels of few rows, and of many in every instruction set
KINDS = ("silu", "gelu", "gelu_tanh", "relu", "swiglu_clamped")

needs_module = pytest.mark.skipif(not IS_BUILT, reason="the compiled module is not there")
examples = settings(max_examples=15, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))


@pytest.fixture(autouse=True)
def _best_isa() -> Iterator[None]:
    """Every test starts and ends with the instruction set that the machine would choose."""
    yield
    if IS_BUILT:
        cpu.native().use_isa("")


def random_matrix(shape: tuple[int, int], bits: int, group: int, symmetric: bool, seed: int = 0) -> QuantizedWeight:
    rows, columns = shape
    groups = -(-columns // group)
    made = torch.Generator().manual_seed(seed)

    def numbers(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=made, dtype=torch.uint8)

    return QuantizedWeight(
        codes=numbers(0, 2**bits, rows, groups * group),
        scale_codes=numbers(64, 256, rows, groups),
        zero_codes=None if symmetric or bits == 1 else numbers(64, 192, rows, groups),
        row_scale=(0.5 + torch.rand(rows, generator=made)).mul(2e-3 / 2**bits).bfloat16(),  # weights of about 0.1
        bits=bits,
        group_size=group,
        columns=columns,
    )


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error_of(found: Tensor, expected: Tensor, x: Tensor, weight: QuantizedWeight) -> float:
    """Error relative to results whose products do not cancel: a single result may be any small number."""
    size = (x.double() ** 2) @ (weight.dequantize().double() ** 2).T
    return float((found.double() - expected).norm() / torch.maximum(size.sum().sqrt(), expected.norm()))


def largest_codes(bits: int, group: int) -> tuple[MatrixLayout, Tensor]:
    """A packed matrix of 32 x 512 whose codes are all as large as they can be."""
    weight = random_matrix((32, 512), bits, group, True)
    weight.codes.fill_(2**bits - 1)
    return layout_of(weight), pack(weight)


def random_entry(
    widths: tuple[int, ...], matrices: int, shape: tuple[int, int], group: int, symmetric: bool
) -> ExpertEntry:
    layout = EntryLayout(widths, matrices, *shape, group, symmetric)
    tensors: dict[int, Tensor] = {}
    for width in set(widths):
        experts = [e for e, own in enumerate(widths) if own == width]
        if width == 16:
            tensors[width] = 0.1 * normal(len(experts), matrices * shape[0], shape[1], dtype=torch.bfloat16)
            continue
        blobs = [
            torch.cat([pack(random_matrix(shape, width, group, symmetric, 10 * e + m)) for m in range(matrices)])
            for e in experts
        ]
        tensors[width] = torch.stack(blobs)
    return ExpertEntry(layout, tensors)


def random_layer(
    widths: tuple[tuple[int, ...], tuple[int, ...]],
    sizes: tuple[int, int] = (72, 100),
    *,
    kind: str = "silu",
    matrices: int = 2,
    group: int = 64,
    symmetric: bool = False,
    bias: bool = False,
) -> ExpertLayer:
    hidden, intermediate = sizes
    experts = len(widths[0])
    return ExpertLayer(
        gate_up=random_entry(widths[0], matrices, (intermediate, hidden), group, symmetric),
        down=random_entry(widths[1], 1, (hidden, intermediate), group, symmetric),
        activation=known_activation(kind, gated=matrices == 2, alpha=1.702, limit=1.5),
        gate_up_bias=0.3 * normal(experts, matrices * intermediate, dtype=torch.bfloat16) if bias else None,
        down_bias=0.3 * normal(experts, hidden, dtype=torch.bfloat16) if bias else None,
    )


def random_routing(tokens: int, top_k: int, experts: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(-1, experts, (tokens, top_k), generator=made), torch.rand(tokens, top_k, generator=made)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


# Linear ---------------------------------------------------------------------------------------------------------------


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@examples
@given(data=st.data())
def test_linear_is_the_references(isa: str, data: st.DataObject) -> None:
    """Every width, group and grid, odd shapes, every dtype, with and without bias, in both precisions."""
    cpu.native().use_isa(isa)
    shape = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 400)), label="shape")
    bits, group = data.draw(st.sampled_from((1, 2, 3, 4, 8))), data.draw(st.sampled_from((32, 64, 128)))
    weight = random_matrix(shape, bits, group, data.draw(st.booleans(), label="symmetric"))
    rows, dtype = data.draw(ROWS, label="rows"), data.draw(st.sampled_from(DTYPES))
    x = normal(rows, shape[1], dtype=dtype)
    bias = normal(shape[0], seed=5) if data.draw(st.booleans(), label="bias") else None
    layout, blob = layout_of(weight), pack(weight)
    expected = reference.linear(x.double(), blob, layout, bias)
    for precision, bound in (("int8", INT8), ("exact", EXACT)):
        found = cpu.linear(x, blob, layout, bias, precision=precision)
        assert found.dtype == dtype
        assert found.shape == (rows, shape[0])
        if rows:
            assert error_of(found, expected, x, weight) < bound + ROUNDING[dtype]


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_linear_of_a_real_size(isa: str, bits: int) -> None:
    """Several slices of rows, several stretches of columns, more rows than are worked on at a time."""
    cpu.native().use_isa(isa)
    weight = random_matrix((300, 1500), bits, 64, False)
    layout, blob = layout_of(weight), pack(weight)
    for rows in (1, 2, 4, 7, 12, 70, 400):
        x = normal(rows, 1500)
        expected = reference.linear(x.double(), blob, layout)
        assert relative(cpu.linear(x, blob, layout), expected) < INT8
        assert relative(cpu.linear(x, blob, layout, precision="exact"), expected) < EXACT


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_extreme_codes_do_not_overflow(isa: str, bits: int, group: int) -> None:
    """The largest codes times the largest activations, all of one sign: what integer accumulators must bear."""
    cpu.native().use_isa(isa)
    layout, blob = largest_codes(bits, group)
    codes = (127, 67) if isa == "avx2" and bits == 4 and group > 32 else (127,)  # many rows: no more than 67 fit there
    for sign in (1, -1):
        for rows in (1, 3, 16, 70):
            found = []
            for code in codes:
                x = torch.full((rows, 512), sign * code / 64)  # its int8 scale is exact where that is the largest code
                found.append(relative(cpu.linear(x, blob, layout), reference.linear(x.double(), blob, layout)))
            assert min(found) < 1e-5
            assert max(found) < 5e-4  # what rounding the scale costs


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_extreme_codes_with_spills_do_not_overflow(isa: str, bits: int, group: int) -> None:
    """The largest codes times activations of one sign of which some are twice or three times the others."""
    cpu.native().use_isa(isa)
    layout, blob = largest_codes(bits, group)
    x = torch.full((70, 512), 1.0)
    x[:, 4::group] = 2
    x[::2, 20::group] = 3
    for signed in (x, -x):
        assert relative(cpu.linear(signed, blob, layout), reference.linear(signed.double(), blob, layout)) < 5e-3


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@examples
@given(data=st.data())
def test_sums_of_the_largest_codes_stay_within_accumulators(isa: str, data: st.DataObject) -> None:
    """Activations of one sign and any spread: no sum of products is too large for the accumulator it is formed in."""
    cpu.native().use_isa(isa)
    bits, group = data.draw(st.sampled_from((1, 2, 3, 4, 8))), data.draw(st.sampled_from((32, 64, 128)))
    layout, blob = largest_codes(bits, group)
    least, power = data.draw(st.floats(0, 1), label="least"), data.draw(st.floats(0.1, 8), label="power")
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 1000), label="seed"))
    x = data.draw(st.sampled_from((1, -1))) * (least + (1 - least) * torch.rand(70, 512, generator=made) ** power)
    rounded = rounding.many_rows(x, bits, group, max(1, group // 32), isa)
    expected = reference.linear(rounded.double(), blob, layout)
    assert relative(cpu.linear(x, blob, layout), expected) < 1e-3


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("tail", [0.0, 3.0])
def test_int8_activations_are_those_of_the_slow_rounding(isa: str, bits: int, group: int, tail: float) -> None:
    """A result is that of activations rounded as decision 7 has it, but for numbers halfway between two codes."""
    cpu.native().use_isa(isa)
    weight = random_matrix((48, 610), bits, group, False)
    layout, blob = layout_of(weight), pack(weight)
    x = normal(70, 610)
    x = x * torch.exp(tail * normal(70, 610, seed=2).clamp(-1.5, 1.5))
    for rows, rounded in (
        (1, rounding.few_rows(x[:1], group)),
        (3, rounding.few_rows(x[:3], group)),
        (70, rounding.many_rows(x, bits, group, max(1, group // 32), isa)),
    ):
        expected = reference.linear(rounded.double(), blob, layout)
        assert relative(cpu.linear(x[:rows], blob, layout), expected) < 1e-3


@needs_module
@pytest.mark.parametrize("isa", ISAS)
def test_one_large_activation_does_not_blur_the_others(isa: str) -> None:
    """Spills keep the scale of many rows from making room for the few largest numbers."""
    cpu.native().use_isa(isa)
    weight = random_matrix((64, 1024), 4, 64, False)
    layout, blob = layout_of(weight), pack(weight)
    x = normal(70, 1024)
    x[:, ::64] *= 8
    expected = reference.linear(x.double(), blob, layout)
    errors = [relative(cpu.linear(x, blob, layout, precision=each), expected) for each in ("int8", "int8-single")]
    assert errors[0] < 0.6 * errors[1]


@needs_module
def test_linear_keeps_leading_dimensions_and_takes_strided_input() -> None:
    """Inputs of any number of dimensions, and views that are not contiguous, give the same product."""
    weight = random_matrix((20, 64), 4, 64, False)
    x = normal(64, 3, 2).permute(2, 1, 0)
    found = cpu.linear(x, pack(weight), layout_of(weight), precision="exact")
    assert found.shape == (2, 3, 20)
    assert relative(found, reference.linear(x.double(), pack(weight), layout_of(weight))) < EXACT


@needs_module
def test_other_dtypes_go_to_the_reference() -> None:
    """A dtype that the native kernels do not have is computed by the reference, not refused."""
    weight = random_matrix((20, 64), 4, 64, False)
    x = normal(3, 64).double()
    assert torch.equal(
        cpu.linear(x, pack(weight), layout_of(weight)),
        x @ unpack(pack(weight), layout_of(weight)).dequantize().double().T,
    )


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_the_result(isa: str, bad: float) -> None:
    """Rounding to int8 must not make a sound-looking number out of it; other rows are not touched."""
    cpu.native().use_isa(isa)
    weight = random_matrix((20, 200), 2, 64, False)
    for rows in (2, 9):
        x = normal(rows, 200)
        x[1, 70] = bad
        found = cpu.linear(x, pack(weight), layout_of(weight))
        assert not found[1].isfinite().any()
        assert found[0].isfinite().all()


@needs_module
@pytest.mark.parametrize("isa", ISAS)
def test_all_bit_patterns_of_16_bit_floats_survive(isa: str) -> None:
    """Through a matrix with a single one, every bfloat16 and float16 comes out as it went in."""
    cpu.native().use_isa(isa)
    weight = random_matrix((1, 1), 8, 32, True)
    weight.codes.fill_(255), weight.scale_codes.fill_(1), weight.row_scale.fill_(1)
    layout, blob = layout_of(weight), pack(weight)  # 255 - 127.5 = 127.5
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[:, None]
        expected = (x.float() * 127.5).to(dtype)
        found = cpu.linear(x, blob, layout, precision="exact")
        same = (found == expected) | (found.isnan() & expected.isnan())
        assert same.all(), x[~same][:5]


# Experts --------------------------------------------------------------------------------------------------------------


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@examples
@given(data=st.data())
def test_experts_are_the_references(isa: str, data: st.DataObject) -> None:
    """Widths of their own for every expert and entry, all activations, biases, empty places, odd shapes."""
    cpu.native().use_isa(isa)
    experts = data.draw(st.integers(1, 5), label="experts")
    width = st.sampled_from((1, 2, 3, 4, 8))
    widths = tuple(tuple(data.draw(st.lists(width, min_size=experts, max_size=experts))) for _ in range(2))
    kind = data.draw(st.sampled_from(KINDS))
    layer = random_layer(
        (widths[0], widths[1]),
        data.draw(st.tuples(st.integers(16, 150), st.integers(16, 200)), label="sizes"),
        kind=kind,
        matrices=2 if kind == "swiglu_clamped" else data.draw(st.sampled_from((1, 2)), label="matrices"),
        group=data.draw(st.sampled_from((32, 64, 128))),
        symmetric=data.draw(st.booleans(), label="symmetric"),
        bias=data.draw(st.booleans(), label="bias"),
    )
    tokens, dtype = data.draw(ROWS, label="tokens"), data.draw(st.sampled_from(DTYPES))
    x = normal(tokens + 16, layer.gate_up.layout.columns, dtype=dtype)
    index, weights = random_routing(tokens + 16, data.draw(st.integers(1, 3), label="top_k"), experts)
    expected = reference.experts(x.double(), index, weights.double(), layer)
    usual = expected.square().mean().sqrt() * expected[:tokens].numel() ** 0.5  # one result may be any small number
    for precision, bound in (("int8", INT8), ("int8-single", SINGLE), ("exact", EXACT)):
        found = cpu.experts(x[:tokens], index[:tokens], weights[:tokens], layer, precision=precision)
        assert found.dtype == dtype
        assert found.shape == x[:tokens].shape
        off = (found.double() - expected[:tokens]).norm()
        assert off <= (bound + ROUNDING[dtype]) * torch.maximum(usual, expected[:tokens].norm())


@needs_module
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 4, 50, 900])
def test_all_tokens_to_one_expert(isa: str, tokens: int) -> None:
    """All rows on one expert, and none on the others, is an ordinary case."""
    cpu.native().use_isa(isa)
    layer = random_layer(((2, 3, 4), (3, 4, 2)), (200, 300))
    x, index, weights = normal(tokens, 200), torch.ones(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)
    expected = reference.experts(x.double(), index, weights.double(), layer)
    assert relative(cpu.experts(x, index, weights, layer), expected) < INT8
    assert relative(cpu.experts(x, index, weights, layer, precision="exact"), expected) < EXACT


@needs_module
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("isa", ISAS)
def test_int8_experts_stay_within_one_percent(isa: str, group: int, kind: str) -> None:
    """Every width, group and activation, gated or not, for the kernels of few rows and of many."""
    cpu.native().use_isa(isa)
    for bits, matrices in product((1, 2, 3, 4, 8), (1, 2)):
        if kind == "swiglu_clamped" and matrices == 1:
            continue
        layer = random_layer(((bits, 8), (bits, 8)), (256, 384), kind=kind, matrices=matrices, group=group)
        for tokens in (1, 3, 9, 70):
            x, index, weights = normal(tokens, 256), torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)
            expected = reference.experts(x.double(), index, weights.double(), layer)
            assert relative(cpu.experts(x, index, weights, layer), expected) < INT8
            assert relative(cpu.experts(x, index, weights, layer, precision="int8-single"), expected) < SINGLE


@needs_module
@pytest.mark.parametrize("isa", ISAS)
def test_a_token_alone_is_what_it_is_beside_another(isa: str) -> None:
    """Alone it is made ready once for all experts of a width, and with another one for each expert by itself."""
    cpu.native().use_isa(isa)
    layer = random_layer(((2, 3, 2, 3, 4), (3, 4, 2, 2, 4)), (200, 300))
    x, index, weights = normal(2, 200), torch.tensor([[2, 0, 1, 4, 3]] * 2), torch.rand(2, 5)
    together = cpu.experts(x, index, weights, layer)
    for token in (slice(0, 1), slice(1, 2)):
        assert relative(cpu.experts(x[token], index[token], weights[token], layer), together[token].double()) < EXACT


@needs_module
def test_no_expert_gives_zeros() -> None:
    """All places empty, and no places at all."""
    layer = random_layer(((2, 3), (3, 4)))
    for top_k in (0, 2):
        found = cpu.experts(normal(3, 72), torch.full((3, top_k), -1), torch.ones(3, top_k), layer)
        assert torch.equal(found, torch.zeros(3, 72))


@needs_module
def test_weights_of_experts_without_tokens_are_not_read() -> None:
    """Their pages stay on the disk: here their blobs hold garbage that would show as NaN."""
    layer = random_layer(((2, 2, 3), (4, 4, 4)))
    before = cpu.experts(normal(5, 72), torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1), layer)
    layer.gate_up.tensors[2][1].fill_(255)
    layer.gate_up.tensors[3].fill_(255)
    assert torch.equal(
        cpu.experts(normal(5, 72), torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1), layer), before
    )


@needs_module
@pytest.mark.parametrize("kind", ["silu", "other"])
def test_stored_experts_and_unknown_activations_take_the_slow_way(kind: str) -> None:
    """Experts of width 16 and activations without a native form run through torch."""
    layer = random_layer(((2, 16, 16, 4), (3, 16, 2, 16)), bias=True)
    layer = ExpertLayer(
        layer.gate_up,
        layer.down,
        Activation(kind, layer.activation.function),
        layer.gate_up_bias,
        layer.down_bias,
    )
    x, (index, weights) = normal(12, 72), random_routing(12, 2, 4)
    expected = reference.experts(x.double(), index, weights.double(), layer)
    assert relative(cpu.experts(x, index, weights, layer, precision="exact"), expected) < EXACT
    assert relative(cpu.experts(x, index, weights, layer), expected) < INT8


@needs_module
def test_nothing_of_a_layer_is_kept() -> None:
    """Weights go away with the layer: a process that loads one model after the other does not fill up."""
    layer = random_layer(((2,), (2,)))
    cpu.experts(normal(1, 72), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), layer)
    tensor = weakref.ref(layer.gate_up.tensors[2])
    del layer
    gc.collect()
    assert tensor() is None


@needs_module
@pytest.mark.parametrize("run", [cpu.experts, reference.experts])
@pytest.mark.parametrize("tokens", [1, 6])
def test_a_place_without_expert_is_skipped_without_reading_its_weights(run: Any, tokens: int) -> None:
    """An index of -1 takes the expert out of the sum, as if its share were zero, and its packed bytes are not read."""
    layer = random_layer(((2, 3), (4, 4)))
    x, weights = normal(tokens, 72), torch.rand(tokens, 2, generator=torch.Generator().manual_seed(1))
    both = torch.tensor([[0, 1]]).expand(tokens, 2)
    kept = torch.tensor([[0, -1]]).expand(tokens, 2)
    expected = run(x, both, weights * torch.tensor([1.0, 0.0]), layer)
    found = run(x, kept, weights, layer)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    layer.gate_up.tensors[3].fill_(255)  # scales of NaN
    layer.down.tensors[4][1].fill_(255)
    assert not run(x, both, weights, layer).isfinite().all()
    assert torch.equal(run(x, kept, weights, layer), found)


@needs_module
@pytest.mark.parametrize("run", [cpu.experts, reference.experts])
@pytest.mark.parametrize("widths", [(2, 3), (2, 16)])
def test_an_expert_that_is_not_there_is_refused(run: Any, widths: tuple[int, int]) -> None:
    """An index beyond the last expert is an error that names it, and no read beyond the weights."""
    layer = random_layer((widths, (4, 4)))
    with pytest.raises(UsageError, match="index: there is no expert 2 in a layer of 2"):
        run(normal(3, 72), torch.tensor([[0], [1], [2]]), torch.ones(3, 1), layer)


# Threads, instruction sets, torch -------------------------------------------------------------------------------------


@needs_module
@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_the_number_of_threads(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of threads gives the same bits."""
    cpu.native().use_isa(isa)
    layer = random_layer(((2, 3, 4, 1), (3, 2, 4, 8)), (300, 500))
    weight = random_matrix((500, 300), 3, 64, False)
    for tokens in (1, 40):
        x, (index, weights) = normal(tokens, 300), random_routing(tokens, 2, 4)
        found = []
        for threads in range(1, 9):
            monkeypatch.setenv("MOESAIC_NUM_THREADS", str(threads))
            found.append((cpu.experts(x, index, weights, layer), cpu.linear(x, pack(weight), layout_of(weight))))
        for experts, linear in found[1:]:
            assert torch.equal(experts, found[0][0])
            assert torch.equal(linear, found[0][1])


@needs_module
def test_number_of_threads_comes_from_the_environment_or_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """MOESAIC_NUM_THREADS wins over the number that torch has."""
    monkeypatch.delenv("MOESAIC_NUM_THREADS", raising=False)
    assert cpu.threads() == torch.get_num_threads()
    monkeypatch.setenv("MOESAIC_NUM_THREADS", "3")
    assert cpu.threads() == 3
    for bad in ("0", "two", "-1"):
        monkeypatch.setenv("MOESAIC_NUM_THREADS", bad)
        with pytest.raises(UsageError, match="MOESAIC_NUM_THREADS"):
            cpu.threads()


@needs_module
def test_an_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """MOESAIC_CPU_ISA chooses the kernels, and is refused when the CPU lacks them."""
    monkeypatch.setenv("MOESAIC_CPU_ISA", "generic")
    cpu.native().use_isa("")
    assert cpu.isa() == "generic"
    assert "generic" in cpu.available()[1]
    for bad, message in (("sse9", "unknown"), ("neon" if "avx2" in ISAS else "avx512", "does not have")):
        monkeypatch.setenv("MOESAIC_CPU_ISA", bad)
        with pytest.raises(RuntimeError, match=message):
            cpu.native().use_isa("")
    monkeypatch.delenv("MOESAIC_CPU_ISA")


@needs_module
@pytest.mark.parametrize("widths", [(3, 4), (3, 16)])
def test_operators_run_under_inference_mode_and_compile(widths: tuple[int, int]) -> None:
    """The operators work under inference mode and in a compiled graph, also with an expert that is not packed."""
    layer, weight = random_layer(((2, 3), widths)), random_matrix((40, 72), 4, 64, False)
    layout, blob = layout_of(weight), pack(weight)
    index, weights = random_routing(6, 2, 2)

    def model(x: Tensor) -> Tensor:
        return cpu.linear(cpu.experts(x, index, weights, layer) + x, blob, layout)

    x = normal(6, 72)
    expected = model(x)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)


@needs_module
def test_fake_operators_agree_with_the_real_ones() -> None:
    """What the compiler is told of shapes and dtypes is what comes out."""
    layer, weight = random_layer(((2, 3), (3, 4))), random_matrix((40, 72), 4, 64, False)
    index, weights = random_routing(6, 2, 2)
    size = (40, 72, 4, 64, False, "int8")
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.moesaic.cpu_linear, (normal(2, 3, 72), pack(weight), None, *size), test_utils=checks
    )
    tensors = (list(layer.gate_up.ordered), list(layer.down.ordered), None, None)
    arguments = (normal(6, 72), index, weights, *tensors, layer.spec, None)
    torch.library.opcheck(torch.ops.moesaic.cpu_experts, arguments, test_utils=checks)


@needs_module
def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data loaders fork: the threads of the parent are not there in the child, who must not wait for them."""
    monkeypatch.setenv("MOESAIC_NUM_THREADS", "2")
    weight = random_matrix((300, 64), 2, 64, False)
    layout, blob, x = layout_of(weight), pack(weight), normal(2, 64)
    expected = cpu.linear(x, blob, layout)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(cpu.linear(x, blob, layout), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_module
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_borrowed_threads_and_own_ones_give_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's threads do the work while there are enough of them, our own do otherwise, and no result tells which."""
    monkeypatch.setenv("MOESAIC_NUM_THREADS", str(threads))
    layer = random_layer(((1, 2, 3), (4, 2, 8)), (192, 700))
    x, (index, weights) = normal(9, 192), random_routing(9, 3, 2)
    before = torch.get_num_threads()
    results = []
    try:
        for own, torch_threads in ((True, before), (False, 4), (False, 1), (False, 4)):
            torch.set_num_threads(torch_threads)
            cpu.native().use_own_threads(own)
            results.append(cpu.experts(x, index, weights, layer))
            torch.randn(64, 4096).softmax(-1).sum()  # torch goes on with its threads
    finally:
        torch.set_num_threads(before)
        cpu.native().use_own_threads(False)
    assert all(torch.equal(result, results[0]) for result in results)


@needs_module
def test_calls_from_several_threads_at_once_are_right() -> None:
    """Servers call from threads of their own: every caller gets its own result."""
    weight = random_matrix((600, 256), 3, 64, False)
    layout, blob = layout_of(weight), pack(weight)
    inputs = [normal(rows, 256) for rows in (1, 2, 5, 9)]
    expected = [cpu.linear(x, blob, layout) for x in inputs]
    with ThreadPoolExecutor(4) as callers:
        for _ in range(20):
            found = list(callers.map(lambda x: cpu.linear(x, blob, layout), inputs))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_module
def test_ceilings_are_measured() -> None:
    """The loops that benchmarks compare with do the work they claim."""
    assert cpu.native().read_bandwidth(torch.zeros(4 << 20, dtype=torch.uint8), 2, 2) > 0
    assert cpu.native().dot_product_rate(1000, 2) > 0


# Without the module ---------------------------------------------------------------------------------------------------


def test_a_missing_module_is_said_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiled module the backend says so instead of failing at import."""
    monkeypatch.setattr(cpu, "_native", None)
    monkeypatch.setattr(cpu, "_missing", "no such file")
    assert cpu.available() == (False, "no such file")
    weight = random_matrix((16, 32), 2, 32, False)
    with pytest.raises(KernelUnavailable, match="no such file"):
        cpu.linear(normal(1, 32), pack(weight), layout_of(weight))


def test_an_unknown_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A precision that does not exist is named, and so is where it came from."""
    with pytest.raises(UsageError, match="precision: 'int4' is unknown; give one of int8, int8-single, exact"):
        cpu.precision_in_use("int4")
    monkeypatch.setenv("MOESAIC_CPU_PRECISION", "fp4")
    with pytest.raises(UsageError, match="MOESAIC_CPU_PRECISION: 'fp4'"):
        cpu.precision_in_use()
    assert cpu.precision_in_use("exact") == "exact"
    monkeypatch.setenv("MOESAIC_CPU_PRECISION", "int8-single")
    assert cpu.precision_in_use() == "int8-single"
    monkeypatch.delenv("MOESAIC_CPU_PRECISION")
    assert cpu.precision_in_use() == "int8"


# Bad input ------------------------------------------------------------------------------------------------------------

LAYOUT = MatrixLayout(20, 70, 3, 64, False)


def linear_arguments() -> dict[str, Any]:
    return {
        "x": normal(3, 70),
        "blobs": [torch.zeros(LAYOUT.total_bytes, dtype=torch.uint8)],
        "biases": [torch.zeros(20)],
        "outs": [torch.zeros(3, 20)],
        "rows": [20],
        "columns": 70,
        "bits": 3,
        "group_size": 64,
        "symmetric": False,
        "precision": "int8",
        "threads": 1,
    }


BAD_LINEAR = {
    "x: dtype": ("x", normal(3, 70).double()),
    "x: rank": ("x", normal(70)),
    "x: columns": ("x", normal(3, 71)),
    "x: strided": ("x", normal(70, 3).T),
    "blob: cut short": ("blob", torch.zeros(LAYOUT.total_bytes - 1, dtype=torch.uint8)),
    "blob: too long": ("blob", torch.zeros(LAYOUT.total_bytes + 64, dtype=torch.uint8)),
    "blob: dtype": ("blob", torch.zeros(LAYOUT.total_bytes, dtype=torch.int8)),
    "blob: misaligned": ("blob", torch.zeros(LAYOUT.total_bytes + 64, dtype=torch.uint8)[1 : 1 + LAYOUT.total_bytes]),
    "blob: strided": ("blob", torch.zeros(2 * LAYOUT.total_bytes, dtype=torch.uint8)[::2]),
    "bias: dtype": ("bias", torch.zeros(20, dtype=torch.float64)),
    "bias: length": ("bias", torch.zeros(19)),
    "out: shape": ("out", torch.zeros(3, 21)),
    "out: dtype": ("out", torch.zeros(3, 20, dtype=torch.bfloat16)),
    "rows: zero": ("rows", 0),
    "rows: huge": ("rows", 2**40),
    "columns: negative": ("columns", -70),
    "bits: unknown": ("bits", 5),
    "group_size: unknown": ("group_size", 48),
    "threads: none": ("threads", 0),
    "precision: unknown": ("precision", "int4"),
}


@needs_module
@pytest.mark.parametrize("case", BAD_LINEAR)
def test_bad_linear_arguments_are_refused_by_name(case: str) -> None:
    """Whatever is wrong with an argument of linear, the message names it."""
    name, value = BAD_LINEAR[case]
    cpu.native().linear(**linear_arguments())
    lists = {"blob": "blobs", "bias": "biases", "out": "outs", "rows": "rows"}
    spoiled = {lists[name]: [value]} if name in lists else {name: value}
    with pytest.raises(ValueError, match=f"^{name}: "):
        cpu.native().linear(**(linear_arguments() | spoiled))


@needs_module
def test_lists_of_another_length_are_refused() -> None:
    """As many blobs, biases and results as there are matrices, and at least one."""
    for name in ("blobs", "biases", "outs"):
        given = linear_arguments()
        with pytest.raises(ValueError, match=f"^{name}: expected 1, found 2"):
            cpu.native().linear(**(given | {name: given[name] * 2}))
    with pytest.raises(ValueError, match=r"^rows: expected 1 to 64 matrices, found 0"):
        cpu.native().linear(**(linear_arguments() | {"rows": [], "blobs": [], "biases": [], "outs": []}))


def layer_arguments() -> dict[str, Any]:
    return {
        "hidden": 72,
        "intermediate": 100,
        "gated": True,
        "group_size": 64,
        "symmetric": False,
        "gate_up_widths": [2, 3, 2, 16],
        "down_widths": [4, 4, 8, 16],
        "activation": "silu",
        "alpha": 0.0,
        "limit": 0.0,
    }


BAD_LAYER: dict[str, tuple[str, Any, str]] = {
    "hidden": ("hidden", 0, "hidden"),
    "intermediate": ("intermediate", 2**30, "intermediate"),
    "group": ("group_size", 16, "group_size"),
    "unknown width": ("gate_up_widths", [2, 3, 7, 16], "gate_up_widths: width 7"),
    "negative width": ("down_widths", [4, 4, -4, 16], "down_widths: width -4"),
    "fewer widths": ("down_widths", [4, 4], "down_widths"),
    "activation": ("activation", "tanh", "activation"),
}


@needs_module
@pytest.mark.parametrize("case", BAD_LAYER)
def test_bad_layers_are_refused_by_name(case: str) -> None:
    """Whatever is wrong with a layer, the message names it, and nothing is read."""
    argument, value, name = BAD_LAYER[case]
    cpu.native().Layer(**layer_arguments())
    with pytest.raises(ValueError, match=f"^{name}"):
        cpu.native().Layer(**(layer_arguments() | {argument: value}))


BAD_RUN: dict[str, tuple[str, Any]] = {
    "x: columns": ("x", normal(2, 71)),
    "x: dtype": ("x", torch.zeros(2, 72, dtype=torch.int32)),
    "index: dtype": ("index", torch.zeros(2, 2, dtype=torch.int32)),
    "index: tokens": ("index", torch.zeros(3, 2, dtype=torch.int64)),
    "index: rank": ("index", torch.zeros(2, dtype=torch.int64)),
    "index: stored": ("index", torch.full((2, 2), 3)),
    "weights: shape": ("weights", torch.zeros(2, 1)),
    "weights: dtype": ("weights", torch.zeros(2, 2, dtype=torch.float16)),
    "index: beyond the last": ("index", torch.full((2, 2), 4)),
    "out: shape": ("out", torch.zeros(2, 70)),
    "gate_up: one missing": ("gate_up", [torch.zeros(1, 64, dtype=torch.uint8)]),
    "gate_up: too many": ("gate_up", lambda good: [*good, good[0]]),
    "gate_up: cut short": ("gate_up", lambda good: [good[0][:, :-64].contiguous(), good[1]]),
    "gate_up: fewer experts": ("gate_up", lambda good: [good[0][:1], good[1]]),
    "down: wrong order": ("down", lambda good: good[::-1]),
    "down: strided": ("down", lambda good: [good[0].T.contiguous().T, good[1]]),
    "gate_up_bias: shape": ("gate_up_bias", torch.zeros(4, 100)),
    "down_bias: dtype": ("down_bias", torch.zeros(4, 72).double()),
    "precision: unknown": ("precision", ""),
    "threads: none": ("threads", -1),
}


@needs_module
@pytest.mark.parametrize("case", BAD_RUN)
def test_bad_runs_are_refused_by_name(case: str) -> None:
    """Whatever is wrong with the tokens of a run, the message names it."""
    name, value = BAD_RUN[case]
    layer = cpu.native().Layer(**layer_arguments())
    packed = random_layer(((2, 3, 2, 16), (4, 4, 8, 16)), bias=True)
    good = {
        "x": normal(2, 72),
        "index": torch.tensor([[0, 1], [-7, -1]]),
        "weights": torch.ones(2, 2),
        "out": torch.zeros(2, 72),
        "gate_up": list(packed.gate_up.ordered[:-1]),
        "down": list(packed.down.ordered[:-1]),
        "gate_up_bias": packed.gate_up_bias,
        "down_bias": packed.down_bias,
        "precision": "int8",
        "threads": 2,
    }
    layer.run(**good)
    if callable(value):
        value = value(good[name])
    with pytest.raises(ValueError, match=f"^{name}( tensor of width [0-9])?: "):
        layer.run(**(good | {name: value}))


@needs_module
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_arguments_never_crash(data: st.DataObject) -> None:
    """Shapes, widths and lengths that need not fit together: a refusal by ValueError, or a result."""
    number = st.integers(-1, 80)
    rows, columns = data.draw(number), data.draw(number)
    bits, group = data.draw(st.sampled_from((0, 1, 2, 3, 4, 5, 8, 16))), data.draw(st.sampled_from((0, 32, 64, 128)))
    symmetric, precision = data.draw(st.booleans()), data.draw(st.sampled_from(cpu.PRECISIONS))
    size = data.draw(st.integers(0, 20000))
    if rows > 0 and columns > 0 and bits in (1, 2, 3, 4, 8) and group and data.draw(st.booleans(), label="fits"):
        size = MatrixLayout(rows, columns, bits, group, symmetric).total_bytes
    tokens = data.draw(st.integers(0, 9))
    x, out = normal(tokens, max(0, columns)), torch.zeros(tokens, max(0, rows))
    blob = torch.full((size,), 255, dtype=torch.uint8)
    with contextlib.suppress(ValueError):
        cpu.native().linear(x, [blob], [None], [out], [rows], columns, bits, group, symmetric, precision, 2)
