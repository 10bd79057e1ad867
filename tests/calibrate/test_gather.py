"""Statistics of the streamed run against the whole model in memory."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from moesaic.calibrate.activations import Shelf
from moesaic.calibrate.gather import gather
from moesaic.calibrate.meter import ErrorMeter
from moesaic.calibrate.moments import SHRINKAGE
from moesaic.calibrate.stream import LayerStream
from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import CorruptFile
from moesaic.quantize import RTN
from moesaic.records import LayerStats
from tests.oracles.statistics import round_parts, run_and_look
from tests.tiny import CONFIGS

FAMILIES = [name for name in CONFIGS if name != "switch_transformers"]
ALL = frozenset({"weight_error", "output_error", "fisher"})
QUANTIZER = RTN(group_size=32, symmetric=True)

Tiny = Callable[[str], Path]


def tokens(rows: int = 3, length: int = 16) -> Tensor:
    return torch.randint(2, 128, (rows, length), generator=torch.Generator().manual_seed(5))


def streamed(folder: Path, scratch: Path, *, limit: int = 1 << 30) -> LayerStream:
    return LayerStream(Checkpoint.open(folder), tokens(), Shelf(scratch, limit))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_equals_the_whole_model(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Counts, masses, moments, errors and Fisher costs of the streamed run are those of the model held in memory."""
    folder = tiny_checkpoint(family)
    stream = streamed(folder, tmp_path)
    layers = stream.checkpoint.layers
    found = gather(stream, ErrorMeter(ALL, (1, 2), QUANTIZER, entries=True))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen = run_and_look(model, layers, tokens())
    for layer in layers:
        hidden, index, weight = (each.detach() for each in seen[layer.name].given)
        gave, gradient = seen[layer.name].gave.detach(), seen[layer.name].gave.grad
        stats = found[layer.name]
        assert stats.tokens == tokens().numel()
        assert stats.count.tolist() == torch.bincount(index.flatten(), minlength=layer.experts).tolist()
        for expert in range(layer.experts):
            mass = weight[index == expert].double().sum()
            assert abs(float(stats.mass[expert] - mass)) < 1e-4
        check_errors(model, layer.name, stats, (hidden, index, weight, gave, gradient), stream)


def check_errors(model, name: str, stats: LayerStats, seen: tuple[Tensor, ...], stream: LayerStream) -> None:
    """Round one expert of the real module after the other and look at what the module gives."""
    hidden, index, weight, gave, gradient = seen
    layer = next(each for each in stream.checkpoint.layers if each.name == name)
    for expert in (0, layer.experts - 1):
        for place, bits in enumerate((1, 2)):
            for which in ("both", "gate_up", "down"):
                module = deepcopy(model.get_submodule(name))
                round_parts(module, layer, expert, (QUANTIZER, bits), which)
                with torch.no_grad():
                    change = module(hidden, index, weight).view(gave.shape) - gave
                error, fisher = change.double().norm(), (change * gradient).double().square().sum()
                if which == "both":
                    assert abs(float(stats.output_error[expert, place] - error)) <= 1e-3 * float(error) + 1e-6
                    assert abs(float(stats.fisher[expert, place] - fisher)) <= 5e-3 * float(fisher) + 1e-12
                else:
                    kind = ("gate_up", "down").index(which)
                    assert abs(float(stats.output_error_entries[expert, place, kind] - error)) <= 1e-3 * error + 1e-6
                    wanted = stats.fisher_entries[expert, place, kind]
                    assert abs(float(wanted - fisher)) <= 5e-3 * float(fisher) + 1e-12


def test_without_gradients_the_errors_are_the_same(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Leaving out the Fisher cost leaves out the way back, and changes nothing else."""
    folder = tiny_checkpoint("mixtral")
    both = gather(streamed(folder, tmp_path), ErrorMeter(ALL, (2,), QUANTIZER))
    forward = gather(streamed(folder, tmp_path), ErrorMeter(ALL - {"fisher"}, (2,), QUANTIZER))
    for name, stats in forward.items():
        assert stats.fisher is None
        assert relative(stats.output_error, both[name].output_error) < 1e-5
        assert relative(stats.weight_error, both[name].weight_error) < 1e-6


def test_states_on_disk_change_nothing(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Hidden states beyond the limit lie in mapped files, with the same result to the bit."""
    folder = tiny_checkpoint("qwen2_moe")
    in_memory = gather(streamed(folder, tmp_path), ErrorMeter(ALL, (2,), QUANTIZER))
    on_disk = gather(streamed(folder, tmp_path / "disk", limit=0), ErrorMeter(ALL, (2,), QUANTIZER))
    for name, stats in in_memory.items():
        for role, tensor in stats.tensors().items():
            assert torch.equal(tensor, getattr(on_disk[name], role)), role
    assert list((tmp_path / "disk").iterdir()) == []


def test_rare_experts_have_the_layers_moment(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """An expert that no token reached has the moment that the layer's tokens would give it, finite and not zero."""
    folder = tiny_checkpoint("mixtral")
    stream = LayerStream(Checkpoint.open(folder), tokens(1, 2), Shelf(tmp_path))
    ((_, stats), *_) = gather(stream, ErrorMeter(ALL, (1, 2), QUANTIZER)).items()
    unreached = [expert for expert, count in enumerate(stats.count.tolist()) if count == 0]
    assert unreached, "two tokens reach at most four of eight experts"
    assert set(unreached) <= set(stats.rare())
    for tensor in stats.tensors().values():
        assert bool(torch.isfinite(tensor).all())
    with stream.loaded(0):
        routed = stream.route(0, stream.embed())
    layer_moment = routed.hidden.square().mean(dim=0)
    for expert in unreached:
        assert relative(stats.gate_up_moment[expert], layer_moment * SHRINKAGE / SHRINKAGE) < 1e-5
        assert float(stats.down_moment[expert].sum()) > 0
        assert float(stats.output_error[expert].sum()) == 0


def test_activations_that_are_not_finite_are_refused(own_checkpoint: Tiny, tmp_path: Path) -> None:
    """Weights that make the model overflow stop the run with the name of the first expert layer it reaches."""
    folder = own_checkpoint("mixtral")
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1.self_attn.o_proj" in name)
    tensors[name].fill_(3e38)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CorruptFile, match=r"layers\.1.*not finite"):
        gather(streamed(folder, tmp_path), None)


def test_every_token_for_every_expert(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """With `all_experts` moments are over all tokens, those that went elsewhere too; nothing else changes."""
    stream = streamed(tiny_checkpoint("mixtral"), tmp_path)
    usual, whole = gather(stream, None), gather(stream, None, all_experts=True)
    for name, stats in whole.items():
        assert stats.count.tolist() == usual[name].count.tolist()
        assert torch.equal(stats.mass, usual[name].mass)
        same = stats.gate_up_moment - stats.gate_up_moment[0]
        assert float(same.abs().max()) < 1e-6, "all experts are given the same"
        assert relative(stats.gate_up_moment, usual[name].gate_up_moment) > 1e-3
        assert relative(stats.down_moment, usual[name].down_moment) > 1e-3
