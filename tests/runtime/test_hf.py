"""Loading packed folders with transformers; whole families are tried in `tests/contracts`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from moesaic.errors import CorruptFile, InvalidPolicy, MoesaicError, NotACheckpoint
from moesaic.packing.manifest import read_manifest
from moesaic.packing.pruning import PRUNING, write_pruning
from moesaic.prune import Pruning, Threshold
from moesaic.runtime.experts import PackedExperts
from moesaic.runtime.hf import MoesaicConfig, load, open_model
from moesaic.runtime.linear import PackedLinear
from moesaic.runtime.skipping import detach, expert_modules, skipping_of
from tests.packing.sample_model import LAYER, SAMPLE

TOKENS = torch.tensor([[2, 3, 4, 5]])


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A copy of the stored sample that a test may damage."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "packed"))


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    """Change `quantization_config`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def test_front_door_and_auto_class_open_the_same_model() -> None:
    """`moesaic.load` and `AutoModelForCausalLM` give the same modules and the same logits."""
    one, other = load(SAMPLE), AutoModelForCausalLM.from_pretrained(SAMPLE)
    assert isinstance(one.get_submodule(LAYER), PackedExperts)
    assert isinstance(other.get_submodule(LAYER), PackedExperts)
    assert isinstance(one.model.layers[0].self_attn.q_proj, PackedLinear)
    with torch.inference_mode():
        assert torch.equal(one(TOKENS).logits, other(TOKENS).logits)
    assert not one.training


def test_packed_bytes_are_what_is_in_memory() -> None:
    """The model holds the file's bytes and not a dequantized copy."""
    held = load_file(SAMPLE / "model.safetensors")
    state = load(SAMPLE).state_dict()
    packed = [name for name, tensor in held.items() if tensor.dtype == torch.uint8]
    assert packed
    assert all(torch.equal(state[name], held[name]) for name in packed)
    assert sum(t.numel() * t.element_size() for t in state.values()) <= sum(
        t.numel() * t.element_size() for t in held.values()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_of_activations_can_be_chosen(dtype: torch.dtype) -> None:
    """What is not packed takes the dtype asked for; packed bytes stay bytes."""
    model = load(SAMPLE, dtype=dtype)
    assert model.lm_head.weight.dtype == dtype
    assert model.model.layers[0].self_attn.q_proj.packed.dtype == torch.uint8
    with torch.inference_mode():
        assert model(TOKENS).logits.dtype == dtype


def test_generation_with_cache_is_generation_without() -> None:
    """The cache changes nothing."""
    model = load(SAMPLE, dtype=torch.float32)
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.inference_mode():
        one, other = (model.generate(TOKENS, use_cache=cache, **how) for cache in (True, False))
    assert torch.equal(one, other)


def test_not_a_packed_folder(tmp_path: Path) -> None:
    """No folder, or one without a manifest."""
    with pytest.raises(NotACheckpoint, match="no such folder"):
        load(tmp_path / "none")
    with pytest.raises(NotACheckpoint, match=r"moesaic.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.update(format_version=2), "format_version is 2"),
        (lambda q: q.update(rotation="hadamard"), "unknown keys"),
        (lambda q: q.update(group_size=48), "group size 48"),
        (lambda q: q["linears"].update(bits=5), "width 5"),
        (lambda q: q["linears"]["modules"].append("model.layers.9.x"), "names model.layers.9.x"),
        (lambda q: q["linears"]["modules"].append("model.norm"), "not a linear layer"),
        (lambda q: q["experts"].update({"model.layers.7.mlp.experts": {"gate_up": "1", "down": "1"}}), "layers.7"),
        (lambda q: q["experts"][LAYER].update(down="8 16 2"), "4|3"),
        (lambda q: q["experts"][LAYER].update(down="8 16 2 x"), "x"),
        (lambda q: q["experts"][LAYER].update(down="8 16 2 5"), "5"),
        (lambda q: q["experts"][LAYER].pop("down"), "down"),
        (lambda q: q["experts"][LAYER].update(down="8 16 2 2"), "packed: "),
    ],
)
def test_damaged_quantization_config_is_refused(packed: Path, change: Callable[[dict], object], message: str) -> None:
    """Whatever is wrong in `quantization_config` is a MoesaicError that says what, and no model comes out."""
    edit_config(packed, change)
    with pytest.raises(MoesaicError, match=message):
        load(packed)


@pytest.mark.parametrize("tensor", [f"{LAYER}.gate_up.b2", "model.layers.0.self_attn.q_proj.packed", "lm_head.weight"])
def test_missing_tensor_is_an_error_and_not_random(packed: Path, tensor: str) -> None:
    """transformers would fill in random numbers; here it is refused."""
    held = load_file(packed / "model.safetensors")
    del held[tensor]
    save_file(held, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptFile, match=tensor.rsplit(".", 1)[0]):
        load(packed)


def test_wrong_shape_is_an_error(packed: Path) -> None:
    """A blob of another length does not load."""
    held = load_file(packed / "model.safetensors")
    name = f"{LAYER}.down.b8"
    held[name] = held[name][:, :-64].clone()
    save_file(held, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptFile):
        load(packed)


def test_plain_checkpoints_open_through_the_same_door(tiny_checkpoint: Callable[[str], Path]) -> None:
    """`open_model` also opens what is not packed, for comparisons."""
    model = open_model(tiny_checkpoint("mixtral"))
    assert not isinstance(model.get_submodule(LAYER), PackedExperts)


def test_config_round_trip() -> None:
    """The configuration survives transformers' own dictionary form."""
    data = json.loads((SAMPLE / "config.json").read_text())["quantization_config"]
    again = MoesaicConfig(**data).to_dict()
    assert {key: again[key] for key in data} == data


def test_training_and_saving_are_refused() -> None:
    """Packed weights have no gradients and are files already."""
    model = load(SAMPLE)
    assert not model.hf_quantizer.is_trainable
    assert not model.hf_quantizer.is_serializable()


def add_policy(folder: Path, threshold: float = 0.9) -> None:
    """Put a ratio rule into a packed folder."""
    model = load(folder)
    layers = {name: {"threshold": torch.tensor(threshold)} for name in expert_modules(model)}
    write_pruning(folder, Pruning("threshold", Threshold(), 2, 0.7, 0.7, layers), read_manifest(folder))


def test_the_auto_class_applies_the_policy(packed: Path) -> None:
    """A folder with a skipping policy skips, whoever opens it, and the same as with `moesaic.load`."""
    plain = load(packed)
    add_policy(packed)
    found = AutoModelForCausalLM.from_pretrained(packed)
    assert skipping_of(found) is not None
    with torch.inference_mode():
        pruned = found(TOKENS).logits
        assert torch.equal(pruned, load(packed)(TOKENS).logits)
        wanted = plain(TOKENS).logits
        assert not torch.equal(pruned, wanted)
        detach(found)
        assert torch.equal(found(TOKENS).logits, wanted)


def test_the_configuration_turns_the_policy_off(packed: Path) -> None:
    """With `"pruning": false` in the configuration the auto class gives the unpruned model, bit for bit."""
    plain = load(packed)
    add_policy(packed)
    config = AutoConfig.from_pretrained(packed)
    config.quantization_config["pruning"] = False
    found = AutoModelForCausalLM.from_pretrained(packed, config=config)
    assert skipping_of(found) is None
    assert skipping_of(load(packed, pruning=False)) is None
    with torch.inference_mode():
        assert torch.equal(found(TOKENS).logits, plain(TOKENS).logits)


def test_the_file_of_the_configuration_turns_it_off_for_everyone(packed: Path) -> None:
    """`"pruning": false` in config.json is not overruled by `moesaic.load`."""
    add_policy(packed)
    path = packed / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["pruning"] = False
    path.write_text(json.dumps(config))
    assert skipping_of(load(packed)) is None
    assert skipping_of(AutoModelForCausalLM.from_pretrained(packed)) is None


def test_the_auto_class_refuses_a_policy_of_another_plan(packed: Path) -> None:
    """What `moesaic.load` refuses is refused here too, and not left out in silence."""
    add_policy(packed)
    path = packed / PRUNING
    path.write_text(path.read_text().replace('"plan": "', '"plan": "0'))
    for opens in (load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(InvalidPolicy, match="another bit plan"):
            opens(packed)
    assert skipping_of(load(packed, pruning=False)) is None
