"""Every supported architecture down the whole road: compress, load, run, against transformers' own model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

import moesaic
from moesaic import CompressOptions
from tests.tiny import CONFIGS, DENSE_FIRST, build_tiny, save_tiny

FAMILIES = sorted(CONFIGS)
SHARED = ("deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe")
TIED = ("ernie4_5_moe", "switch_transformers")
FUSED = [name for name in FAMILIES if name != "switch_transformers"]
GATE_UP = "16 8 4 3 2 1 16 2"
DOWN = "1 16 16 2 3 4 8 1"
EVERY_WIDTH = [int(width) for width in GATE_UP.split()], [int(width) for width in DOWN.split()]

Tiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference kernels, which compute what the format says; others may round activations on top."""
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")


def auto(folder: Path) -> Any:
    """The auto class for the folder's kind of model."""
    return AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM


@cache
def tokens(rows: int = 2, length: int = 24) -> Tensor:
    """Random tokens. `[rows, length]`"""
    return torch.randint(2, 128, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    """Logits of a model for `tokens()`."""
    more = {"decoder_input_ids": tokens()[:, :8]} if model.config.is_encoder_decoder else {}
    return model(input_ids=tokens(), use_cache=False, **more).logits.float()


@torch.inference_mode()
def generated(model: PreTrainedModel, **how: Any) -> list[int]:
    """Twelve tokens, greedily."""
    how = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, **how}
    return model.generate(tokens(1, 8), **how)[0].tolist()


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative error of logits."""
    return float((found - wanted).norm() / wanted.norm())


def original(folder: Path, **how: Any) -> PreTrainedModel:
    """The full-precision model."""
    return auto(folder).from_pretrained(folder, **how).eval()


def road(source: Path, out: Path, **options: Any) -> PreTrainedModel:
    """Compress and load."""
    dtype = options.pop("dtype", "auto")
    moesaic.compress(source, out, CompressOptions(**options))
    return moesaic.load(out, dtype=dtype)


def write_plan(path: Path, layers: dict[str, Any]) -> Path:
    """A plan written by hand."""
    head = {"format": "moesaic-plan/1", "method": "by hand", "requested_bits": None}
    path.write_text(json.dumps({**head, "layers": layers}))
    return path


def expert_layer_names(source: Path) -> list[str]:
    """Paths of the expert layers."""
    return [layer.name for layer in moesaic.Checkpoint.open(source).layers]


def rounded(weight: Tensor, bits: int, symmetric: bool) -> None:
    """Round a matrix `[out, in]` (a view of a parameter) in place to what its packed form stands for."""
    if bits != 16:
        weight.copy_(CompressOptions(bits=bits, symmetric=symmetric).make_quantizer()(weight, bits).dequantize())


@torch.no_grad()
def round_experts(model: PreTrainedModel, widths: tuple[list[int], list[int]], *, symmetric: bool) -> int:
    """Round the experts of transformers' own model, found by the flags that its modules carry; count the layers."""
    layers = 0
    for module in model.modules():
        if type(module).__name__ == "SwitchTransformersExperts":
            for expert, (first, second) in enumerate(zip(*widths, strict=True)):
                rounded(module.get_submodule(f"expert_{expert}").wi.weight, first, symmetric)
                rounded(module.get_submodule(f"expert_{expert}").wo.weight, second, symmetric)
        elif hasattr(module, "is_concatenated"):
            for expert, (first, second) in enumerate(zip(*widths, strict=True)):
                both, down = module.gate_up_proj[expert], module.down_proj[expert]
                both, down = (both.T, down.T) if module.is_transposed else (both, down)
                for part in both.chunk(2) if module.is_concatenated else (both[0::2], both[1::2]):
                    rounded(part, first, symmetric)
                rounded(down, second, symmetric)
        else:
            continue
        layers += 1
    return layers


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bits_change_nothing(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """With 16 bits everywhere the logits equal the original's, bit for bit."""
    source = tiny_checkpoint(family)
    model = road(source, tmp_path / "out", bits=16, other_bits=16)
    assert torch.equal(logits(model), logits(original(source)))


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_are_close(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Eight bits change the logits by a few percent at most (where a router is nearly undecided)."""
    source = tiny_checkpoint(family)
    model = road(source, tmp_path / "out", bits=8, other_bits=8, dtype=torch.float32)
    assert distance(logits(model), logits(original(source, dtype=torch.float32))) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_every_width_computes_what_rounded_weights_compute(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """All widths beside each other, other widths for gate_up than for down, equal the original with rounded weights."""
    source = tiny_checkpoint(family)
    names = expert_layer_names(source)
    plan = write_plan(tmp_path / "plan.json", {name: {"gate_up": GATE_UP, "down": DOWN} for name in names})
    model = road(source, tmp_path / "out", plan=plan, symmetric=False, dtype=torch.float32)

    wanted = original(source, dtype=torch.float32)
    before = logits(wanted)
    assert round_experts(wanted, EVERY_WIDTH, symmetric=False) == len(names)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    linears = {
        (name, kind["bits"]) for kind in (config["linears"], config.get("head")) if kind for name in kind["modules"]
    }
    assert (("lm_head", 8) in linears) == (family not in TIED)
    for name, bits in linears:
        with torch.no_grad():
            rounded(wanted.get_submodule(name).weight, bits, False)
    assert distance(logits(model), logits(wanted)) < 1e-4
    assert distance(before, logits(wanted)) > 1e-3  # else the test would show nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """A packed model generates the same tokens with a cache and without, also when transformers opens the folder."""
    model = road(tiny_checkpoint(family), tmp_path / "out", bits=2.5, dtype=torch.float32)
    found = generated(model, use_cache=True)
    assert len(found) == 12 + (1 if model.config.is_encoder_decoder else 8)
    assert found == generated(model, use_cache=False)
    other = auto(tmp_path / "out").from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.equal(logits(other), logits(model))
    assert generated(other) == found


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_packed_and_what_stays(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Dense first layers and shared experts are packed as other layers; routers, norms, embeddings, dtype stay."""
    source = tiny_checkpoint(family)
    model = road(source, tmp_path / "out", bits=2.5)
    parameters = dict(original(source).named_parameters())
    assert model.dtype == torch.bfloat16

    packed = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    names = expert_layer_names(source)
    assert list(packed["experts"]) == names
    if family in DENSE_FIRST:
        assert names == ["model.layers.1.mlp.experts"]
        assert "model.layers.0.mlp.down_proj" in packed["linears"]["modules"]
    shared = [name for name in parameters if name.endswith("down_proj.weight") and ".shared_expert" in name]
    assert len(shared) == {"qwen2_moe": 2, **dict.fromkeys(SHARED, 1)}.get(family, 0)
    assert {name.removesuffix(".weight") for name in shared} <= set(packed["linears"]["modules"])

    kept = load_file(tmp_path / "out" / "model.safetensors")
    stays = [layer.router for layer in moesaic.Checkpoint.open(source).layers]
    stays += [name for name in parameters if "norm" in name or "embed" in name]
    assert len(stays) > len(names) + 3
    for name in stays:
        assert torch.equal(kept[name], parameters[name])


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "switch_transformers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Sources in float32 and float16 keep their dtype; 16 bits change nothing, also for some experts beside packed."""
    source = tmp_path / "source"
    build_tiny(family).to(dtype).save_pretrained(source)
    reference = original(source)
    assert reference.dtype == dtype
    model = road(source, tmp_path / "all", bits=16, other_bits=16)
    assert torch.equal(logits(model), logits(reference))

    names = expert_layer_names(source)
    plan = write_plan(tmp_path / "plan.json", {name: {"gate_up": GATE_UP, "down": DOWN} for name in names})
    mixed = road(source, tmp_path / "mixed", plan=plan, symmetric=True, other_bits=16)
    assert mixed.dtype == dtype
    assert load_file(tmp_path / "mixed" / "model.safetensors")[f"{names[0]}.down.b16"].dtype == dtype
    round_experts(reference, EVERY_WIDTH, symmetric=True)
    assert distance(logits(mixed), logits(reference)) < (1e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "switch_transformers"])
def test_sharded_sources_and_outputs(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """A source in many files packs to the same bytes as one in a single file; a packed model in many files loads."""
    source = save_tiny(tmp_path / "sharded", family, shard="50KB")
    assert len(list(source.glob("model-*.safetensors"))) > 2
    one = road(tiny_checkpoint(family), tmp_path / "one", bits=2.5)
    many = road(source, tmp_path / "many", bits=2.5)
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "many")]
    assert same[0] == same[1]

    spread = road(source, tmp_path / "spread", bits=2.5, shard_bytes=40_000)
    assert len(list((tmp_path / "spread").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(spread), logits(one))
    assert torch.equal(logits(many), logits(one))
    moesaic.verify(tmp_path / "spread")


@pytest.mark.parametrize("family", FUSED)
def test_fused_and_separate_tensors_are_the_same_model(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Whether the file has a tensor for every expert or one 3-D tensor for all, the packed bytes are the same."""
    usual = tiny_checkpoint(family)
    fused = tmp_path / "fused"
    model = build_tiny(family)
    model.config.save_pretrained(fused)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, fused / "model.safetensors", metadata={"format": "pt"})
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    assert torch.equal(logits(original(fused)), logits(original(usual)))  # transformers reads this form too

    for source, name in ((usual, "from_usual"), (fused, "from_fused")):
        moesaic.compress(source, tmp_path / name, CompressOptions(bits=2.5))
    found = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("from_usual", "from_fused")]
    assert found[0] == found[1]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "switch_transformers"])
def test_layers_at_sixteen_bits_beside_packed_ones(family: str, tmp_path: Path) -> None:
    """A layer whose experts all have 16 bits stays an ordinary module in a model whose other layers are packed."""
    more = {"num_layers": 4, "num_sparse_encoder_layers": 2} if family == "switch_transformers" else {}
    source = save_tiny(tmp_path / "source", family, **more)
    names = expert_layer_names(source)
    assert len(names) > 1
    layers = {name: " ".join(["16"] * 8) if number == 0 else GATE_UP for number, name in enumerate(names)}
    model = road(source, tmp_path / "out", plan=write_plan(tmp_path / "plan.json", layers), dtype=torch.float32)
    kinds = [type(model.get_submodule(name)).__name__ for name in names]
    assert kinds[0] != "PackedExperts"
    assert set(kinds[1:]) == {"PackedExperts"}
    close = road(source, tmp_path / "close", bits=16, other_bits=4, dtype=torch.float32)
    assert distance(logits(model), logits(close)) < 1
    assert generated(model)


@pytest.mark.parametrize("quantizer", ["rtn", "hqq"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_grid_goes_down_the_road(
    quantizer: str, group_size: int, symmetric: bool, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    """Both quantizers, all group sizes (also larger than the matrix) and both kinds of grid load and stay close."""
    source = tiny_checkpoint("mixtral")
    options = {"quantizer": quantizer, "group_size": group_size, "symmetric": symmetric}
    model = road(source, tmp_path / "out", bits=4, other_bits=8, dtype=torch.float32, **options)
    assert distance(logits(model), logits(original(source, dtype=torch.float32))) < 0.1
