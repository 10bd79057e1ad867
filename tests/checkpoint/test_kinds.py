"""Kinds of weights told from names, against the modules of the real architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from torch import nn

from moesaic.checkpoint.kinds import find_blocks, is_packable, kinds_of, split_expert, stacks_of
from moesaic.checkpoint.reader import Checkpoint
from tests.tiny import CONFIGS


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the safetensors library gives them."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def kind_by_modules(checkpoint: Checkpoint, name: str) -> str:
    """The kind of a parameter, from the classes of the modules around it."""
    model, path = checkpoint.model, name.rpartition(".")[0]
    around = [path.rsplit(".", cut)[0] for cut in range(path.count(".") + 1)]
    classes = [type(model.get_submodule(each)).__name__ for each in around]
    if any(name.startswith(layer.name + ".") for layer in checkpoint.layers):
        return "routed experts"
    if model.get_submodule(path) is model.get_output_embeddings():
        return "head"
    if "Norm" in classes[0]:
        return "norms"
    if any("Attention" in each for each in classes):
        return "attention"
    if isinstance(model.get_submodule(path), nn.Embedding):
        return "embeddings"
    for layer in checkpoint.layers:
        block = layer.name.rpartition(".")[0]
        if name.startswith(block + "."):
            experts = checkpoint.shapes[name][0] == layer.experts or checkpoint.shapes[name][-1] == layer.experts
            return "routers" if experts else "shared experts"
    return "dense MLP"


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_kinds_are_those_of_the_modules(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    """Names of the model and names in the file tell the same as the classes of the modules, for every family."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    model = {name: checkpoint.shapes[name] for name in checkpoint.sources}
    told = kinds_of(model, find_blocks(model))
    assert told == {name: kind_by_modules(checkpoint, name) for name in model}
    stored = stored_shapes(tiny_checkpoint(family))
    in_file = kinds_of(stored, find_blocks(stored))
    for parameter, source in checkpoint.sources.items():
        for names in source.tensors.values():
            assert {in_file[name] for name in names} == {told[parameter]}


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_blocks_are_the_expert_layers(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    """Experts, their size and the router are found in the file as the architecture has them."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    blocks = find_blocks(stored_shapes(tiny_checkpoint(family)))
    real = sorted((layer.experts, layer.shape.expert_weights) for layer in checkpoint.layers)
    assert sorted((block.experts, block.expert_weights) for block in blocks) == real
    routers = {next(iter(checkpoint.sources[layer.router].tensors.values()))[0] for layer in checkpoint.layers}
    assert {block.router for block in blocks} == routers


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_packable_are_the_linear_layers_that_are_packed(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    """What is said to be packed at --other-bits is what `compress` packs."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    shapes = {name: checkpoint.shapes[name] for name in checkpoint.sources}
    blocks = find_blocks(shapes)
    kinds, stacks = kinds_of(shapes, blocks), stacks_of(blocks)
    packable = {name for name, shape in shapes.items() if is_packable(name, shape, kinds[name], stacks)}
    heads = [] if checkpoint.head is None else [checkpoint.head]
    assert packable == {f"{name}.weight" for name in [*checkpoint.linears, *heads]}


def test_split_expert() -> None:
    """Per-expert tensors, fused ones and those of shared experts are told apart."""
    assert split_expert("m.layers.3.mlp.experts.12.w1.weight") == ("m.layers.3.mlp", 12, "w1.weight")
    assert split_expert("m.layers.3.mlp.experts.expert_1.wi.weight") == ("m.layers.3.mlp", 1, "wi.weight")
    assert split_expert("m.layers.3.mlp.experts.gate_up_proj") == ("m.layers.3.mlp", None, "gate_up_proj")
    assert split_expert("m.layers.3.mlp.shared_experts.up_proj.weight") is None


def test_blocks_come_in_the_order_of_their_numbers() -> None:
    """Layer 10 comes after layer 9."""
    shapes = {f"layers.{number}.mlp.experts.0.w.weight": (4, 4) for number in (10, 9, 1)}
    assert [block.name for block in find_blocks(shapes)] == ["layers.1.mlp", "layers.9.mlp", "layers.10.mlp"]
