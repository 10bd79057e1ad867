"""A decoder layer as one native call, against the operations that it chains, one by one: bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import UsageError
from moesaic.kernels import cpu
from moesaic.kernels.decoder_layer import AttentionWeights, DecoderLayer, NormWeights, RouterWeights, run_layers
from moesaic.kernels.layer import ExpertEntry, ExpertLayer, known_activation
from moesaic.kernels.single_token import Routing, attend, rms_norm, rotate, route
from moesaic.packing.layout import EntryLayout, MatrixLayout, layout_of, pack
from moesaic.quantize import RTN

pytestmark = pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")

EPSILON, SCALE = 1e-6, 0.3
Matrix = tuple[Tensor, MatrixLayout, Tensor | None]


class Parts:
    """A random layer, and what it computes operation by operation."""

    def __init__(self, seed: int, *, shared: int, group: int, size: int, norms: str | None, bias: bool) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.size, self.shared, self.heads, self.norms = size, shared, shared * group, norms
        self.hidden, self.experts, self.top_k = 48, 4, 2
        rows = (self.heads * size, shared * size, shared * size)
        self.matrices = [self.matrix(each, self.hidden, bias=bias) for each in rows]
        self.matrices.append(self.matrix(self.hidden, rows[0], bias=bias))
        self.around = NormWeights((self.numbers(self.hidden), self.numbers(self.hidden)), EPSILON)
        wide = {"head": (size, size), "whole": rows[:2]}.get(norms or "")
        self.of_heads = None if wide is None else NormWeights((self.numbers(wide[0]), self.numbers(wide[1])), EPSILON)
        self.layer = self.expert_layer()
        routing = Routing(self.top_k)
        self.router = RouterWeights(self.numbers(self.experts, self.hidden), routing, rounds=True)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random).to(torch.bfloat16)

    def matrix(self, rows: int, columns: int, *, bias: bool) -> Matrix:
        rounded = RTN(symmetric=True, clip=False)(torch.randn(rows, columns, generator=self.random) / columns**0.5, 4)
        return pack(rounded), layout_of(rounded), self.numbers(rows) if bias else None

    def expert_layer(self) -> ExpertLayer:
        """Two experts of 2 bits and two of 3."""
        widths, entries = (2, 3, 3, 2), []
        for matrices, rows, columns in ((2, 32, self.hidden), (1, self.hidden, 32)):
            tensors: dict[int, Tensor] = {}
            for width in (2, 3):
                quantize = RTN(symmetric=True, clip=False)
                made = [
                    torch.cat([pack(quantize(self.numbers(rows, columns).float(), width)) for _ in range(matrices)])
                    for _ in range(2)
                ]
                tensors[width] = torch.stack(made)
            entries.append(ExpertEntry(EntryLayout(widths, matrices, rows, columns, 64, True), tensors))
        return ExpertLayer(*entries, known_activation("silu", gated=True))

    def native(self) -> DecoderLayer:
        made = DecoderLayer(
            AttentionWeights(self.around, self.matrices, self.size, self.of_heads, self.norms == "whole", SCALE)
        )
        made.set_experts(self.layer, self.router)
        return made

    def obvious(
        self, x: Tensor, turns: tuple[Tensor, Tensor], rooms: tuple[Tensor, Tensor], used: int, seen: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum after attention, its norm, and the output; the rooms get the new token."""
        rows = x.shape[0]
        normed = rms_norm(x, self.around.weights[0], EPSILON)
        queries, keys, values = (cpu.linear(normed, *matrix) for matrix in self.matrices[:3])
        if self.of_heads is not None and self.norms == "whole":
            queries = rms_norm(queries, self.of_heads.weights[0], EPSILON)
            keys = rms_norm(keys, self.of_heads.weights[1], EPSILON)
        of_heads = self.of_heads.weights if self.of_heads is not None and self.norms == "head" else (None, None)
        rotate(queries, keys, *turns, *of_heads, size=self.size, epsilon=EPSILON)
        for room, new in zip(rooms, (keys, values), strict=True):
            room[:, :, used] = new.view(rows, self.shared, self.size)
        found = attend(queries, *(room[:, :, : used + 1] for room in rooms), SCALE, seen)
        after = x + cpu.linear(found.view(rows, 1, -1), *self.matrices[3])
        normed = rms_norm(after, self.around.weights[1], EPSILON)
        flat = normed.view(rows, -1)
        _, shares, index = route(flat, self.router.weight, self.router.routing, logits=x.dtype)
        return after, normed, after + cpu.experts(flat, index, shares, self.layer).view(x.shape)

    def inputs(self, rows: int, used: int) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        angles = torch.rand(1, 1, self.size, generator=self.random)
        rooms = [self.numbers(rows, self.shared, used + 3, self.size) for _ in range(2)]
        turns = (angles.cos().bfloat16(), angles.sin().bfloat16())
        return self.numbers(rows, 1, self.hidden), turns, (rooms[0], rooms[1])


@given(
    st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 300), st.integers(1, 3), st.sampled_from((1, 2, 4)),
    st.sampled_from((16, 32)), st.sampled_from((None, "head", "whole")), st.booleans(), st.booleans(),
)  # fmt: skip
def test_it_is_the_chain_of_its_operations(  # noqa: PLR0917 (drawn one by one)
    seed: int, rows: int, used: int, shared: int, group: int, size: int, norms: str | None, bias: bool, masked: bool
) -> None:  # fmt: skip
    """Any sharing of heads, norms of heads, biases, masks and lengths: output, cache, and the step that ends early."""
    parts = Parts(seed, shared=shared, group=group, size=size, norms=norms, bias=bias)
    x, turns, rooms = parts.inputs(rows, used)
    seen = torch.rand(rows, used + 1, generator=parts.random) < 0.7 if masked else None
    other = (rooms[0].clone(), rooms[1].clone())
    after, normed, output = parts.obvious(x, turns, other, used, seen)
    layer = parts.native()
    found, nothing = layer.step(x, turns, rooms, used, seen, whole=True)
    assert nothing is None
    assert torch.equal(found, output)
    assert all(map(torch.equal, rooms, other))
    early = layer.step(x, turns, rooms, used, seen, whole=False)
    assert torch.equal(early[0], after)
    assert early[1] is not None
    assert torch.equal(early[1], normed)


def test_several_layers_are_one_after_the_other() -> None:
    """The output of one is the input of the next; each has rooms of its own."""
    parts = [Parts(seed, shared=2, group=2, size=16, norms="head", bias=False) for seed in (1, 2, 3)]
    x, turns, _ = parts[0].inputs(2, 5)
    rooms = [part.inputs(2, 5)[2] for part in parts]
    wanted = x
    for part, pair in zip(parts, rooms, strict=True):
        wanted = part.obvious(wanted, turns, (pair[0].clone(), pair[1].clone()), 5, None)[2]
    assert torch.equal(run_layers([part.native() for part in parts], x, turns, rooms, 5, None), wanted)


def _float32(x: Tensor, rooms: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor], int]:
    return x.float(), rooms, 5


def _no_room(x: Tensor, rooms: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor], int]:
    return x, rooms, 8


def _other_hidden(x: Tensor, rooms: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor], int]:
    return x[..., :-1], rooms, 5


def _overlapping(x: Tensor, rooms: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor], int]:
    return x, (rooms[0][:, :1].expand(-1, 2, -1, -1), rooms[1]), 5


@pytest.mark.parametrize(
    ("spoil", "named"), [(_float32, "x:"), (_no_room, "keys:"), (_other_hidden, "x:"), (_overlapping, "keys:")]
)
def test_what_does_not_fit_is_named(
    spoil: Callable[..., tuple[Tensor, tuple[Tensor, Tensor], int]], named: str
) -> None:
    """One line with the argument, and the layer goes on afterwards."""
    parts = Parts(1, shared=2, group=1, size=16, norms=None, bias=False)
    x, turns, rooms = parts.inputs(1, 5)
    layer = parts.native()
    bad, spoiled, used = spoil(x, rooms)
    with pytest.raises(UsageError, match=f"cpu decoder layer: {named}"):
        layer.step(bad, turns, spoiled, used, None, whole=True)
    layer.step(x, turns, rooms, 5, None, whole=True)
