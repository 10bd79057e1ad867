"""Router repair."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from moesaic.calibrate.activations import Shelf
from moesaic.calibrate.mlp import ExpertMlp
from moesaic.calibrate.repair import RouterRepair
from moesaic.calibrate.stream import LayerStream, Routed
from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import UnsupportedModel


def routed(hidden: torch.Tensor, router: torch.Tensor) -> Routed:
    logits = hidden @ router.T
    weight, index = logits.softmax(dim=-1).topk(2)
    return Routed(hidden, index, weight, logits)


def repair_for(exact: Routed, **knobs) -> RouterRepair:
    repair = RouterRepair(**knobs)
    repair._routed = exact
    return repair


def test_a_linear_distortion_is_undone():
    """Where the compressed model's inputs are a linear map of the exact ones, the repaired router routes as before."""
    torch.manual_seed(0)
    hidden, router = torch.randn(2000, 12), torch.randn(6, 12)
    distorted = hidden @ (torch.eye(12) + 0.3 * torch.randn(12, 12))
    repair = repair_for(routed(hidden, router), ridge=1e-6)
    before = routed(distorted, router)
    after = routed(distorted, repair.fit(router, before))
    assert repair.changed(before) > 0.2
    assert repair.changed(after) < 0.02


def test_noise_is_not_fitted():
    """With inputs that are right already, the router stays what it is; with few tokens it stays close."""
    torch.manual_seed(0)
    hidden, router = torch.randn(40, 64), torch.randn(6, 64)
    repair = repair_for(routed(hidden, router))
    assert torch.allclose(repair.fit(router, routed(hidden, router)), router, atol=1e-5)
    noisy = repair.fit(router, routed(hidden + 0.1 * torch.randn(40, 64), router))
    assert float((noisy - router).norm() / router.norm()) < 0.5


def test_the_exact_states_are_those_of_the_whole_model(tiny_checkpoint, tmp_path):
    """Carried through all layers, the second set of hidden states gives the full-precision model's logits."""
    folder = tiny_checkpoint("qwen2_moe")
    tokens = torch.randint(2, 128, (3, 16), generator=torch.Generator().manual_seed(5))
    stream = LayerStream(Checkpoint.open(folder), tokens, Shelf(tmp_path))
    repair = RouterRepair()
    repair.start(stream.embed())
    with torch.no_grad():
        for number in range(stream.count):
            with stream.loaded(number):
                repair.enter(stream, number)
            layer = stream.moe(number)
            for expert in range(layer.experts):
                weights = stream.checkpoint.expert(layer, expert)
                repair.add_expert(expert, ExpertMlp.of(weights, stream.activation(layer)))
            states = repair.leave(stream, number)
        found = stream.logits(slice(0, 3), states)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        wanted = model(input_ids=tokens, use_cache=False).logits
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_routers_that_hide_their_logits_are_refused():
    """An architecture whose router gives no logits cannot be repaired, and says so."""
    hidden, router = torch.randn(4, 8), torch.randn(6, 8)
    silent = Routed(hidden, torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 2), None)
    with pytest.raises(UnsupportedModel, match="--repair-routers"):
        repair_for(routed(hidden, router)).fit(router, silent)
