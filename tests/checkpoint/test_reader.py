"""Opened checkpoints: every family against transformers' own loaded model, and every way to be damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import CorruptFile, MoesaicError, NotACheckpoint, UnsupportedModel
from moesaic.families import MoeLayer
from moesaic.records import ExpertWeights
from tests.checkpoint.raw import change
from tests.tiny import CONFIGS, DENSE_FIRST, EXPERTS, save_tiny

Make = Callable[[str], Path]
families = pytest.mark.parametrize("family", CONFIGS)
LAYER = "model__layers__0__block_sparse_moe"


def loaded(folder: Path, checkpoint: Checkpoint) -> PreTrainedModel:
    """The model as transformers loads it."""
    auto = AutoModelForSeq2SeqLM if checkpoint.config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder)


def canonical(model: PreTrainedModel, layer: MoeLayer, expert: int) -> ExpertWeights:
    """An expert's matrices taken from transformers' module by its own flags."""
    module = model.get_submodule(layer.name)
    if layer.family is not None:
        one = module.get_submodule(f"expert_{expert}")
        return ExpertWeights(None, one.wi.weight, one.wo.weight)
    first, down = module.gate_up_proj[expert], module.down_proj[expert]
    if module.is_transposed:
        first, down = first.T, down.T
    cut = (lambda t: t.chunk(2)) if module.is_concatenated else (lambda t: (t[::2], t[1::2]))
    gate, up = cut(first)
    if not module.has_bias:
        return ExpertWeights(gate, up, down)
    gate_bias, up_bias = cut(module.gate_up_proj_bias[expert])
    return ExpertWeights(gate, up, down, gate_bias, up_bias, module.down_proj_bias[expert])


def assert_same(found: ExpertWeights, wanted: ExpertWeights) -> None:
    """Same matrices and biases, to the last bit, in the stored dtype and contiguous."""
    for one, other in ((found.matrices(), wanted.matrices()), (found.biases(), wanted.biases())):
        assert list(one) == list(other)
        for role, tensor in one.items():
            assert tensor.dtype == torch.bfloat16
            assert tensor.is_contiguous()
            assert torch.equal(tensor, other[role]), role


@families
def test_experts_are_those_of_transformers(tiny_checkpoint: Make, family: str) -> None:
    """Every family's experts come out in canonical orientation, equal to the loaded module's; so do W1 and router."""
    folder = tiny_checkpoint(family)
    checkpoint = Checkpoint.open(folder)
    model = loaded(folder, checkpoint)
    state = model.state_dict()
    assert checkpoint.layers
    for layer in checkpoint.layers:
        assert layer.experts == EXPERTS
        assert torch.equal(checkpoint.router(layer), state[layer.router].float())
        for expert in (0, 3, EXPERTS - 1):
            found = checkpoint.expert(layer, expert)
            assert_same(found, canonical(model, layer, expert))
            assert torch.equal(checkpoint.first_layer(layer, expert), found.first_layer)
            assert found.up.shape == (layer.intermediate, layer.hidden)
            assert found.down.shape == (layer.hidden, layer.intermediate)


@families
def test_everything_else_is_there_once(tiny_checkpoint: Make, family: str) -> None:
    """All other parameters and buffers come out equal to the loaded model's, each once; nothing is forgotten."""
    folder = tiny_checkpoint(family)
    checkpoint = Checkpoint.open(folder)
    model = loaded(folder, checkpoint)
    state = model.state_dict()
    routed = {name for layer in checkpoint.layers for name in layer.parameters()}
    found: dict[str, Tensor] = {}
    for source in checkpoint.other_sources():
        for name, tensor in checkpoint.parameters_of(source).items():
            assert name not in found
            found[name] = tensor
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    tied = set(model.all_tied_weights_keys)
    assert set(found) | routed == set(state) - tied


@families
def test_parts_join_to_the_whole(tiny_checkpoint: Make, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large parameter read in runs of rows is the same as read at once, with the same digest."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    monkeypatch.setattr("moesaic.checkpoint.reader.PART_BYTES", 1000)
    for source in checkpoint.other_sources():
        if source.converter is not None:
            continue
        checkpoint.digests = {}
        whole = checkpoint.parameters_of(source)[source.targets[0]]
        once, checkpoint.digests = checkpoint.digests, {}
        parts = list(checkpoint.parts(source))
        assert checkpoint.digests == once
        joined = torch.cat([part for _, part in parts]) if parts[0][0] is not None else parts[0][1]
        assert torch.equal(joined, whole)


@families
def test_dense_first_layers_and_linears(tiny_checkpoint: Make, family: str) -> None:
    """Dense layers are no expert layers; their linear layers may be packed, routers may not; the head is apart."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    if family in DENSE_FIRST:
        assert [layer.name for layer in checkpoint.layers] == ["model.layers.1.mlp.experts"]
        assert "model.layers.0.mlp.down_proj" in checkpoint.linears
    routers = {layer.router.removesuffix(".weight") for layer in checkpoint.layers}
    assert checkpoint.linears
    assert not routers & set(checkpoint.linears)
    assert "lm_head" not in checkpoint.linears
    assert checkpoint.head == (None if checkpoint.config.tie_word_embeddings else "lm_head")
    assert not any(name.startswith(layer.name + ".") for layer in checkpoint.layers for name in checkpoint.linears)


@families
def test_opening_reads_no_tensor(tiny_checkpoint: Make, family: str) -> None:
    """Opening costs headers only; an expert costs its own bytes and no others."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    assert checkpoint.bytes_read == 0
    layer = checkpoint.layers[0]
    weights = checkpoint.expert(layer, 1)
    used = sum(2 * tensor.numel() for tensor in (*weights.matrices().values(), *weights.biases().values()))
    assert checkpoint.bytes_read == used


def test_digests_cover_what_was_read(tiny_checkpoint: Make) -> None:
    """With digests on, each tensor read is recorded under its name in the file."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    checkpoint.digests = {}
    checkpoint.expert(checkpoint.layers[0], 3)
    assert len(checkpoint.digests) == 3
    assert all(".3." in name and len(digest) == 64 for name, digest in checkpoint.digests.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_are_kept(tiny_checkpoint: Make, tmp_path: Path, dtype: torch.dtype) -> None:
    """float16 and float32 checkpoints come out in their own dtype."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint("qwen2_moe"), dtype=dtype)
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    found = checkpoint.expert(checkpoint.layers[0], 0)
    assert found.gate is not None
    assert found.gate.dtype == dtype
    assert torch.equal(found.gate, model.model.layers[0].mlp.experts.gate_up_proj[0].chunk(2)[0])


def test_sharded_checkpoint_is_the_same_model(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """Spread over many files it reads the same."""
    folder = save_tiny(tmp_path / "sharded", "mixtral", shard="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    one, other = Checkpoint.open(tiny_checkpoint("mixtral")), Checkpoint.open(folder)
    for expert in range(EXPERTS):
        assert_same(other.expert(other.layers[1], expert), one.expert(one.layers[1], expert))


def fused(folder: Path, model: PreTrainedModel) -> None:
    """Write a checkpoint again under the module's own names, experts fused."""
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    for name in model.all_tied_weights_keys:
        state.pop(name, None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "olmoe", "gpt_oss", "granitemoe"])
def test_fused_tensors_on_disk(own_checkpoint: Make, family: str) -> None:
    """A checkpoint that stores the fused 3-D parameters gives the same experts, one slice at a time."""
    folder = own_checkpoint(family)
    before = Checkpoint.open(folder)
    model = loaded(folder, before)
    fused(folder, model)
    after = Checkpoint.open(folder)
    layer = after.layers[0]
    assert_same(after.expert(layer, 5), canonical(model, layer, 5))
    assert torch.equal(after.first_layer(layer, 5), after.expert(layer, 5).first_layer)
    read = after.bytes_read
    after.expert(layer, 2)
    biases = 3 * layer.intermediate if layer.has_bias else 0
    assert after.bytes_read - read < 2 * (layer.shape.expert_weights + biases) + 1000


def test_tied_head_is_not_missed(tmp_path: Path) -> None:
    """A head that is tied to the embeddings is not in the file and not an error."""
    folder = save_tiny(tmp_path / "tied", "qwen3_moe", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    Checkpoint.open(folder)


def test_extra_tensors_are_ignored(own_checkpoint: Make) -> None:
    """Old rotary tables and the like do no harm."""
    folder = own_checkpoint("mixtral")
    change(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert Checkpoint.open(folder).layers


def test_name_for_people(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """The folder's name, or the hub id for a folder of the hub's cache."""
    assert Checkpoint.open(tiny_checkpoint("mixtral")).name == "mixtral"
    cached = tmp_path / "models--owner--some-name" / "snapshots" / "abc"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(tiny_checkpoint("mixtral"))
    assert Checkpoint.open(cached).name == "owner/some-name"


# ---- damage ----


def refused(folder: Path, error: type[MoesaicError], *words: str) -> None:
    """Opening fails with that error, in one line that has all the words."""
    with pytest.raises(error) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_not_a_model(tmp_path: Path) -> None:
    """No folder, an empty folder, a file."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, word in (("none", "no such folder"), ("file", "no such folder"), ("empty", "config.json")):
        refused(tmp_path / name, NotACheckpoint, str(tmp_path / name), word)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "martian_moe"}', "{}", '{"model_type": 3}'])
def test_unreadable_config(own_checkpoint: Make, text: str) -> None:
    """A broken or unknown configuration names the file."""
    folder = own_checkpoint("mixtral")
    (folder / "config.json").write_text(text)
    with pytest.raises(MoesaicError, match=r"config.json") as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


def test_no_expert_layers(tmp_path: Path) -> None:
    """A dense model is refused as such."""
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"vocab_size": 8, "intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    refused(tmp_path, UnsupportedModel, "'llama' has no Mixture-of-Experts layers")


def test_already_quantized(own_checkpoint: Make) -> None:
    """A quantized source names its method."""
    folder = own_checkpoint("mixtral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    refused(folder, UnsupportedModel, "already quantized (fp8)")


@pytest.mark.parametrize("removed", ["w1", "gate"])
def test_missing_tensor(own_checkpoint: Make, removed: str) -> None:
    """A missing router, or a missing matrix of one expert, is noticed when opening."""
    folder = own_checkpoint("mixtral")
    key = f"{LAYER}__experts__5__w1__weight" if removed == "w1" else f"{LAYER}__gate__weight"
    change(folder, **{key: None})
    refused(folder, CorruptFile, "7" if removed == "w1" else "model.layers.0.mlp.gate.weight")


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}__experts__5__w2__weight",
        f"{LAYER}__gate__weight",
        "model__layers__0__self_attn__q_proj__weight",
        "model__layers__1__input_layernorm__weight",
        "model__embed_tokens__weight",
        "lm_head__weight",
    ],
)
@pytest.mark.parametrize("more", [True, False])
def test_wrong_shape(own_checkpoint: Make, name: str, more: bool) -> None:
    """Too many or too few rows in any tensor is noticed when opening; file, tensor and both shapes are named."""
    folder = own_checkpoint("mixtral")
    dotted = name.replace("__", ".")
    tensor = load_file(folder / "model.safetensors")[dotted]
    change(folder, **{name: torch.cat([tensor, tensor[:1]]) if more else tensor[1:].clone()})
    refused(folder, CorruptFile, "model.safetensors", dotted, str(tensor.shape[0] + (1 if more else -1)))


def test_config_of_another_size(own_checkpoint: Make) -> None:
    """Weights and config.json that do not belong together are refused."""
    folder = own_checkpoint("qwen2_moe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts": 16}))
    refused(folder, CorruptFile, "16")


def test_mixed_dtypes_of_one_layers_experts(own_checkpoint: Make) -> None:
    """One expert in another dtype is named."""
    folder = own_checkpoint("mixtral")
    change(folder, **{f"{LAYER}__experts__5__w1__weight": torch.zeros(96, 64)})
    refused(folder, CorruptFile, "experts.5.w1.weight", "float32")


def test_nan_is_found_when_the_expert_is_read(own_checkpoint: Make) -> None:
    """NaN in one matrix names file and tensor; other experts can be read."""
    folder = own_checkpoint("mixtral")
    weight = torch.zeros(96, 64, dtype=torch.bfloat16)
    weight[3, 3] = float("nan")
    change(folder, **{f"{LAYER}__experts__5__w1__weight": weight})
    checkpoint = Checkpoint.open(folder)
    checkpoint.expert(checkpoint.layers[0], 4)
    with pytest.raises(CorruptFile, match=r"model.safetensors: tensor .*experts.5.w1.weight holds 1 NaN"):
        checkpoint.expert(checkpoint.layers[0], 5)


def test_truncated_shard(own_checkpoint: Make) -> None:
    """A shard that ends early is noticed from its header, before any work."""
    folder = own_checkpoint("mixtral")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, CorruptFile, "truncated", str(path))


def test_missing_shard(tmp_path: Path) -> None:
    """A shard that the index names and the folder lacks."""
    folder = save_tiny(tmp_path / "sharded", "mixtral", shard="60KB")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    refused(folder, CorruptFile, gone.name, "missing")
