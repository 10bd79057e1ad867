"""One expert that runs."""

from __future__ import annotations

import torch
from torch.nn.functional import linear, silu

from moesaic.calibrate.mlp import ExpertMlp, chunks
from moesaic.records import ExpertWeights


def swiglu(first: torch.Tensor) -> torch.Tensor:
    gate, up = first.chunk(2, dim=-1)
    return silu(gate) * up


def test_the_expert_computes_what_its_formula_says():
    """down(silu(gate x + b) * (up x + b)) + b, in float32 whatever the weights are stored in."""
    torch.manual_seed(0)
    gate, up, down = torch.randn(6, 4).bfloat16(), torch.randn(6, 4).bfloat16(), torch.randn(4, 6).bfloat16()
    biases = torch.randn(6).bfloat16(), torch.randn(6).bfloat16(), torch.randn(4).bfloat16()
    mlp = ExpertMlp.of(ExpertWeights(gate, up, down, *biases), swiglu)
    x = torch.randn(3, 4)
    gate_out = linear(x, gate.float(), biases[0].float())
    up_out = linear(x, up.float(), biases[1].float())
    wanted = linear(silu(gate_out) * up_out, down.float(), biases[2].float())
    assert torch.allclose(mlp(x), wanted, atol=1e-5)
    assert torch.allclose(mlp.outer(mlp.inner(x)), wanted, atol=1e-5)
    other = mlp.with_matrices({"down": torch.zeros(4, 6)})
    assert torch.allclose(other(x), biases[2].float().expand(3, 4))


def test_chunks_cover_everything_once():
    """The last chunk is shorter; nothing gives no chunks."""
    assert [(each.start, each.stop) for each in chunks(10, 4)] == [(0, 4), (4, 8), (8, 10)]
    assert chunks(0, 4) == []
