"""A checkpoint as the scoring rules see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.weights import CheckpointWeights, InitialRouters
from moesaic.errors import CorruptFile, MoesaicError, UsageError
from moesaic.scores import COSTS, SCORERS
from tests.checkpoint.raw import change
from tests.scores.made_up import random_stats
from tests.tiny import CONFIGS, save_tiny

Make = Callable[[str], Path]


@pytest.mark.parametrize("family", CONFIGS)
def test_router_scoring_reads_routers_only(tiny_checkpoint: Make, family: str) -> None:
    """The router norm costs exactly the bytes of the routers."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    scores = SCORERS["router_norm"]()(CheckpointWeights(checkpoint))
    assert list(scores.layers) == [layer.name for layer in checkpoint.layers]
    sizes = [checkpoint.parameter(layer.router) for layer in checkpoint.layers]
    routers = sum(tensor.numel() * tensor.element_size() for tensor in sizes)
    assert checkpoint.bytes_read == 2 * routers


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "switch_transformers"])
def test_max_var_reads_first_layers_only(tiny_checkpoint: Make, family: str) -> None:
    """Where every expert has tensors of its own, MaxVar reads the gate (or up) matrices and nothing else."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    SCORERS["max_var"]()(CheckpointWeights(checkpoint))
    wanted = sum(2 * layer.experts * layer.hidden * layer.intermediate for layer in checkpoint.layers)
    assert checkpoint.bytes_read == wanted


@pytest.mark.parametrize("family", CONFIGS)
def test_every_rule_scores_every_family(tiny_checkpoint: Make, family: str) -> None:
    """All registered rules run on all families."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    stats = random_stats({layer.name: layer.experts for layer in checkpoint.layers})
    weights = CheckpointWeights(checkpoint, measured=stats)
    for made in COSTS.values():
        assert {layer: len(rows) for layer, rows in made()(weights).layers.items()} == weights.experts
    for make in SCORERS.values():
        assert {layer: len(values) for layer, values in make()(weights).layers.items()} == weights.experts


def test_experts_and_sizes_are_the_checkpoints(tiny_checkpoint: Make) -> None:
    """A rule sees an expert as the reader gives it, and sizes cost no reading."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    weights, layer = CheckpointWeights(checkpoint), checkpoint.layers[1]
    assert weights.shape(layer.name) == layer.shape
    assert checkpoint.bytes_read == 0
    assert torch.equal(weights.expert(layer.name, 5).down, checkpoint.expert(layer, 5).down)


def test_statistics_that_are_not_there(tiny_checkpoint: Make) -> None:
    """A rule that wants statistics is told how to get them; those of another model are refused."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    with pytest.raises(UsageError, match=r"give --calibration to measure them, or --stats"):
        SCORERS["activation_frequency"]()(CheckpointWeights(checkpoint))
    with pytest.raises(UsageError, match=r"have no layer model.layers.0.mlp.experts: they are of another model"):
        SCORERS["activation_frequency"]()(CheckpointWeights(checkpoint, measured=random_stats({"L": 8})))
    few = random_stats({layer.name: 4 for layer in checkpoint.layers})
    with pytest.raises(UsageError, match=r"have 4 experts for .*, the model has 8"):
        COSTS["fisher_error"]()(CheckpointWeights(checkpoint, measured=few))


def initial_file(folder: Path, names: str, path: Path) -> Path:
    """The routers of a checkpoint alone, at a tenth of their size, under stored names."""
    held = load_file(folder / "model.safetensors")
    save_file({name: tensor * 0.1 for name, tensor in held.items() if names in name}, path)
    return path


def test_initial_routers_from_a_folder_and_from_a_file(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """Both forms give the router before training, and router norm then scores the change."""
    folder = tiny_checkpoint("mixtral")
    final = Checkpoint.open(folder)
    layer = final.layers[0]
    from_folder = InitialRouters.open(save_tiny(tmp_path / "initial", "mixtral", seed=5))
    from_file = InitialRouters.open(initial_file(folder, "gate", tmp_path / "routers.safetensors"))
    assert from_folder.router(final, layer).shape == (8, 64)
    assert not torch.equal(from_folder.router(final, layer), final.router(layer))
    assert torch.allclose(from_file.router(final, layer), final.router(layer) * 0.1, rtol=0.01)
    scores = SCORERS["router_norm"]()(CheckpointWeights(final, from_file))
    norms = final.router(layer).norm(dim=1)
    assert scores.layers[layer.name] == pytest.approx((-0.9 * norms).tolist(), rel=0.01)
    assert "change" in str(scores.details)


def test_without_initial_there_is_none(tiny_checkpoint: Make) -> None:
    """Rules are told that the initial router is not known."""
    weights = CheckpointWeights(Checkpoint.open(tiny_checkpoint("mixtral")))
    assert weights.initial_router(next(iter(weights.experts))) is None


def test_initial_file_under_the_modules_names(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """A file written from the model's own state dictionary is understood as well."""
    final = Checkpoint.open(tiny_checkpoint("mixtral"))
    held = {layer.router: final.router(layer) for layer in final.layers}
    save_file(held, tmp_path / "x.safetensors")
    found = InitialRouters.open(tmp_path / "x.safetensors").router(final, final.layers[1])
    assert torch.equal(found, final.router(final.layers[1]))


def test_initial_of_another_model_is_refused(tiny_checkpoint: Make, own_checkpoint: Make, tmp_path: Path) -> None:
    """Missing layers, other shapes and missing files name the initial checkpoint."""
    final = Checkpoint.open(tiny_checkpoint("mixtral"))
    save_file({"other": torch.ones(8, 64)}, tmp_path / "x.safetensors")
    name = final.layers[0].router
    save_file({name: torch.ones(8, 32)}, tmp_path / "y.safetensors")
    for path, message in (
        ("x", "no initial router under the name"),
        ("y", r"shape \(8, 32\), the trained one \(8, 64"),
    ):
        initial = InitialRouters.open(tmp_path / f"{path}.safetensors")
        with pytest.raises(CorruptFile, match=message):
            initial.router(final, final.layers[0])
    switch = InitialRouters.open(tiny_checkpoint("switch_transformers"))
    with pytest.raises(CorruptFile, match="has no expert layer"):
        switch.router(final, final.layers[0])
    with pytest.raises(MoesaicError, match=r"none.safetensors"):
        InitialRouters.open(tmp_path / "none.safetensors")


def test_nan_router_names_file_and_tensor(own_checkpoint: Make) -> None:
    """A router that holds NaN stops the scoring with the place."""
    folder = own_checkpoint("mixtral")
    router = torch.full((8, 64), float("nan"), dtype=torch.bfloat16)
    change(folder, model__layers__1__block_sparse_moe__gate__weight=router)
    with pytest.raises(CorruptFile, match=r"model.safetensors: tensor .*gate.weight holds 512 NaN"):
        SCORERS["router_norm"]()(CheckpointWeights(Checkpoint.open(folder)))
