"""What a single token passes through besides packed matrices: each kernel against its formula in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import UsageError
from moesaic.kernels import cpu, single_token
from moesaic.kernels.single_token import Routing
from moesaic.packing.layout import layout_of, pack
from moesaic.quantize import RTN

IS_BUILT = cpu.is_ready()[0]
ISAS = cpu.native().isas() if IS_BUILT else []
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}  # of one result
DTYPE = st.sampled_from(cpu.DTYPES)
SEED = st.integers(0, 2**31)

pytestmark = pytest.mark.skipif(not IS_BUILT, reason="the native module is not built")


@pytest.fixture(autouse=True)
def _best_isa() -> Iterator[None]:
    """Every test starts and ends with the instruction set that the machine would choose."""
    yield
    if IS_BUILT:
        cpu.native().use_isa("")


def on_every_isa() -> Iterator[str]:
    """Go through the instruction sets of this machine."""
    for isa in ISAS:
        cpu.native().use_isa(isa)
        yield isa


class Numbers:
    """Normally distributed, from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)


def norm_of(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The formula of RMSNorm, in float64."""
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


@given(st.integers(0, 5), st.integers(1, 3), st.integers(1, 300), DTYPE, st.sampled_from((0.0, 1.0)), SEED)
def test_rms_norm_is_its_formula(  # noqa: PLR0917 (drawn one by one)
    batch: int, tokens: int, columns: int, dtype: torch.dtype, offset: float, seed: int
) -> None:
    """Any shape and dtype, the weight as it is or what is left of 1, also where epsilon is all that counts."""
    numbers = Numbers(seed, dtype)
    x, weight = numbers(batch, tokens, columns), numbers(columns)
    x[batch // 2 :] *= 1e-3
    wanted = norm_of(x.double(), weight.double() + offset, 1e-6)
    for _ in on_every_isa():
        found = single_token.rms_norm(x, weight, 1e-6, offset=offset)
        assert found.dtype == dtype
        assert ((found.double() - wanted).abs() <= ROUNDING[dtype] * wanted.abs() + 1e-6).all()


@given(st.integers(1, 3), st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 200), DTYPE, SEED)
def test_matrices_beside_each_other_are_what_they_are_alone(
    tokens: int, rows: list[int], columns: int, dtype: torch.dtype, seed: int
) -> None:
    """Several packed matrices at a time: the same bits as one after the other, biases or not."""
    numbers = Numbers(seed, torch.float32)
    matrices = [RTN(group_size=64)(numbers(each, columns), 3) for each in rows]
    parts = [
        (pack(matrix), layout_of(matrix), numbers(each) if each % 2 else None)
        for matrix, each in zip(matrices, rows, strict=True)
    ]
    x = numbers(tokens, columns).to(dtype)
    for _ in on_every_isa():
        together = single_token.linears(x, parts)
        assert all(torch.equal(one, cpu.linear(x, *part)) for one, part in zip(together, parts, strict=True))


def choices(logits: Tensor, routing: Routing, choice_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Shares of all experts, and what they are chosen by, minus infinity outside the kept groups; float64."""
    shares = logits.sigmoid() if routing.sigmoid else logits.softmax(-1)
    choice = shares if choice_bias is None else shares + choice_bias
    by_group = choice.view(len(logits), routing.groups, logits.shape[1] // routing.groups)
    best = by_group.topk(min(2, by_group.shape[-1]), dim=-1)[0].sum(-1)
    ranked = best.sort(dim=-1, descending=True)[0]
    if routing.kept_groups < routing.groups and len(logits):  # groups that float32 may not tell apart
        assume(float((ranked[:, routing.kept_groups - 1] - ranked[:, routing.kept_groups]).min()) > 1e-5)
    allowed = best >= ranked[:, routing.kept_groups - 1, None]
    return shares, torch.where(allowed[..., None], by_group, -torch.inf).view(logits.shape)


@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 16), st.integers(1, 150), DTYPE, SEED, st.data())
def test_route_is_its_definition(  # noqa: PLR0917 (drawn one by one)
    tokens: int, groups: int, of_group: int, hidden: int, dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    """Softmax and sigmoid, groups, biases, normalised or scaled: shares follow from the logits, the best are chosen."""
    experts, kept = groups * of_group, data.draw(st.integers(1, groups))
    routing = Routing(
        top_k=data.draw(st.integers(1, kept * of_group)),
        sigmoid=data.draw(st.booleans()),
        normalises=data.draw(st.booleans()),
        scale=data.draw(st.sampled_from((1.0, 2.5))),
        groups=groups,
        kept_groups=kept,
    )
    numbers = Numbers(seed, torch.float32)
    x, weight = numbers(tokens, hidden).to(dtype), (numbers(experts, hidden) / hidden**0.5).bfloat16()
    logit_bias = numbers(experts) if data.draw(st.booleans()) else None
    choice_bias = numbers(experts) if data.draw(st.booleans()) else None
    exact = x.double() @ weight.double().T + (0 if logit_bias is None else logit_bias)
    for _ in on_every_isa():
        biases = {"logit_bias": logit_bias, "choice_bias": choice_bias}
        logits, shares, index = single_token.route(x, weight, routing, logits=dtype, **biases)
        assert logits.dtype == dtype
        assert shares.dtype == torch.float32
        size = x.double().abs() @ weight.double().abs().T + exact.abs()
        assert ((logits.double() - exact).abs() <= (ROUNDING[dtype] + 1e-6) * size).all()
        every_share, choice = choices(logits.double(), routing, choice_bias)  # what follows from these logits
        wanted = every_share.gather(1, index)
        wanted = wanted / wanted.sum(-1, keepdim=True) if routing.normalises else wanted
        assert torch.allclose(shares.double(), wanted * routing.scale, atol=1e-5)
        chosen = choice.gather(1, index)
        assert (chosen.diff(dim=-1) <= 1e-6).all()  # best first
        left = choice.scatter(1, index, -torch.inf)
        assert (chosen[:, -1:] >= left - 1e-6).all()
        assert all(len(set(row)) == routing.top_k for row in index.tolist())


def test_the_first_of_equal_experts_is_chosen() -> None:
    """Logits that are all the same: experts 0, 1, 2, in that order."""
    x, weight = torch.ones(2, 8).bfloat16(), torch.ones(16, 8).bfloat16()
    for _ in on_every_isa():
        _, shares, index = single_token.route(x, weight, Routing(3), logits=torch.bfloat16)
        assert index.tolist() == [[0, 1, 2]] * 2
        assert torch.allclose(shares, torch.full((2, 3), 1 / 3))


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 40), st.booleans(), st.booleans(), DTYPE,
    SEED, st.data(),
)  # fmt: skip
def test_rotate_is_its_formula(  # noqa: PLR0917 (drawn one by one)
    rows: int, heads: int, shared: int, half: int, normed: bool, common: bool, dtype: torch.dtype, seed: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    """Norms of heads or none, a part of each head or all of it turned, one position for all rows or each its own."""
    size, rotated = 2 * half, 2 * data.draw(st.integers(1, half))
    numbers = Numbers(seed, dtype)
    queries, keys = numbers(rows, heads * size), numbers(rows, 1, shared * size)
    angle = numbers(1 if common else rows, 1, rotated // 2).float()
    cosines, sines = (function(torch.cat([angle, angle], -1)).to(dtype) for function in (torch.cos, torch.sin))
    weights = (numbers(size), numbers(size)) if normed else (None, None)

    def formula(x: Tensor, weight: Tensor | None) -> Tensor:
        x = x.double().view(rows, -1, size)
        x = x if weight is None else norm_of(x, weight.double(), 1e-5)
        a, b, rest = x[..., : rotated // 2], x[..., rotated // 2 : rotated], x[..., rotated:]
        cos, sin = cosines.double(), sines.double()
        first = a * cos[..., : rotated // 2] - b * sin[..., : rotated // 2]
        second = b * cos[..., rotated // 2 :] + a * sin[..., rotated // 2 :]
        return torch.cat([first, second, rest], -1)

    wanted = [formula(x, weight) for x, weight in zip((queries, keys), weights, strict=True)]
    for _ in on_every_isa():
        found = (queries.clone(), keys.clone())
        single_token.rotate(*found, cosines, sines, *weights, size=size, epsilon=1e-5)
        for one, other in zip(found, wanted, strict=True):
            close = (one.double().view(other.shape) - other).abs() <= 2 * ROUNDING[dtype] * (1 + other.abs())
            assert close.all()


def attended(queries: Tensor, keys: Tensor, values: Tensor, scale: float, seen: Tensor | None) -> Tensor:
    """The formula of attention in float64, head by head; zeros where nothing is seen."""
    group = queries.shape[1] // keys.shape[1]
    scores = scale * queries.double()[:, :, None] @ keys.double().repeat_interleave(group, 1).transpose(2, 3)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    return (scores.softmax(-1).nan_to_num() @ values.double().repeat_interleave(group, 1))[:, :, 0]


@given(
    st.integers(1, 2), st.integers(1, 3), st.sampled_from((1, 2, 3, 8, 17)), st.integers(1, 600),
    st.sampled_from((16, 20, 32, 64, 128, 260)), st.sampled_from((16, 20, 128, 144)), st.booleans(), DTYPE, SEED,
)  # fmt: skip
def test_attend_is_its_formula(  # noqa: PLR0917 (drawn one by one)
    rows: int, shared: int, group: int, count: int, size: int, value_size: int, masked: bool, dtype: torch.dtype,
    seed: int,
) -> None:  # fmt: skip
    """Any sharing of heads, any sizes and numbers of keys, keys hidden or not; the same for any number of threads."""
    numbers = Numbers(seed, dtype)
    queries, keys = numbers(rows, shared * group, size), numbers(rows, shared, count, size)
    values = numbers(rows, shared, count, value_size)
    seen = torch.rand(rows, count, generator=numbers.generator) < 0.7 if masked else None
    scale = 2 * size**-0.5  # shares of all sizes
    wanted = attended(queries, keys, values, scale, seen)
    tolerance = (2e-5 if dtype == torch.float32 else 2 * ROUNDING[dtype]) * float(values.abs().max())
    for _ in on_every_isa():
        found = single_token.attend(queries, keys, values, scale, seen)
        assert found.dtype == dtype
        assert (found.view(wanted.shape).double() - wanted).abs().max() <= tolerance
        given = (queries, keys, values, None if seen is None else seen.view(torch.uint8), torch.empty_like(found))
        for threads in (1, 3):
            exported = (None if tensor is None else cpu.export(tensor) for tensor in given)
            cpu.native().attend(*exported, scale, threads)
            assert torch.equal(given[-1], found)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", cpu.DTYPES)
def test_attend_hands_on_what_is_no_number(dtype: torch.dtype) -> None:
    """NaN in a key or a value that is seen comes out in every head that sees it; hidden keys of NaN do no harm."""
    numbers = Numbers(0, dtype)
    for count, place in ((1, 0), (40, 20), (600, 599)):
        queries, keys, values = numbers(1, 4, 32), numbers(1, 2, count, 32), numbers(1, 2, count, 32)
        keys[0, 1, place] = torch.nan
        seen = torch.ones(1, count, dtype=torch.bool)
        seen[0, place] = False
        for _ in on_every_isa():
            found = single_token.attend(queries, keys, values, 0.1).view(4, 32)
            assert found[:2].isfinite().all()
            assert found[2:].isnan().all()
            assert single_token.attend(queries, keys, values, 0.1, seen).isfinite().all()


def test_a_row_that_sees_nothing_gets_zeros() -> None:
    """Padding alone: no NaN."""
    numbers = Numbers(0, torch.bfloat16)
    seen = torch.zeros(1, 300, dtype=torch.bool)
    for _ in on_every_isa():
        found = single_token.attend(numbers(1, 2, 64), numbers(1, 1, 300, 64), numbers(1, 1, 300, 64), 0.1, seen)
        assert not found.any()


X, WEIGHT = torch.ones(2, 8).bfloat16(), torch.ones(4, 8).bfloat16()
HEADS = torch.ones(1, 32)
KEYS = torch.ones(1, 2, 5, 8)
BAD: dict[str, tuple[Any, str]] = {
    "norm: length": (lambda: single_token.rms_norm(X, torch.ones(9), 1e-6), r"x: expected shape \[.., 9\]"),
    "norm: rank": (lambda: single_token.rms_norm(X, WEIGHT, 1e-6), "weight: expected 1 dimension"),
    "norm: dtype": (lambda: single_token.rms_norm(X.long(), torch.ones(8), 1e-6), "x: expected float32"),
    "route: dtype": (lambda: single_token.route(X, WEIGHT.float(), Routing(1), logits=X.dtype), "expected bfloat16"),
    "route: places": (lambda: single_token.route(X, WEIGHT, Routing(5), logits=X.dtype), "index: more places"),
    "route: groups": (
        lambda: single_token.route(X, WEIGHT, Routing(1, groups=3), logits=X.dtype),
        "groups: 4 experts do not make",
    ),
    "route: kept": (
        lambda: single_token.route(X, WEIGHT, Routing(1, groups=2, kept_groups=3), logits=X.dtype),
        "kept_groups: more than groups",
    ),
    "route: bias": (
        lambda: single_token.route(X, WEIGHT, Routing(1), logits=X.dtype, choice_bias=torch.ones(3)),
        "choice_bias: expected shape",
    ),
    "rotate: odd": (lambda: single_token.rotate(HEADS, HEADS, HEADS[:, :3], HEADS[:, :3], size=8), "cosines: 3 is odd"),
    "rotate: heads": (lambda: single_token.rotate(HEADS, HEADS, HEADS[:, :4], HEADS[:, :4], size=7), "queries: expec"),
    "rotate: rows": (
        lambda: single_token.rotate(HEADS, HEADS, torch.ones(3, 4), torch.ones(3, 4), size=8),
        "cosines: expected one row or 1",
    ),
    "rotate: sines": (lambda: single_token.rotate(HEADS, HEADS, HEADS[:, :4], HEADS[:, :6], size=8), "sines: expected"),
    "attend: heads": (
        lambda: single_token.attend(torch.ones(1, 3, 8), KEYS, KEYS, 1.0),
        "keys: 3 heads cannot share 2",
    ),
    "attend: values": (lambda: single_token.attend(HEADS, KEYS, KEYS[:, :, :4], 1.0), "values: expected shape"),
    "attend: dtype": (
        lambda: single_token.attend(HEADS.bfloat16(), KEYS, KEYS, 1.0),
        "queries: expected another dtype",
    ),
    "attend: askew": (
        lambda: cpu.native().attend(HEADS, KEYS.transpose(2, 3), KEYS.transpose(2, 3), None, HEADS, 1.0, 1),
        "keys: the last two dimensions",
    ),
    "attend: mask": (
        lambda: single_token.attend(HEADS, KEYS, KEYS, 1.0, torch.ones(1, 4, dtype=torch.bool)),
        "seen: expected shape",
    ),
    "attend: no keys": (lambda: single_token.attend(HEADS, KEYS[:, :, :0], KEYS[:, :, :0], 1.0), "keys: 0 is not in 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(case: str) -> None:
    """Wrong shapes, dtypes and numbers are refused, with the argument's name."""
    call, says = BAD[case]
    with pytest.raises((UsageError, ValueError), match=says):
        call()


def test_matrices_that_do_not_go_together_are_refused() -> None:
    """One call quantizes its input once: the matrices must want it in the same way."""
    parts = []
    for bits in (3, 4):
        matrix = RTN(group_size=64)(torch.randn(20, 64), bits)
        parts.append((pack(matrix), layout_of(matrix), None))
    with pytest.raises(UsageError, match="differ in columns, width"):
        single_token.linears(torch.ones(1, 64), parts)
