"""Bad input, through the command line: one clear line, the right exit code, nothing under the target's name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from moesaic import CompressOptions, compress, verify
from moesaic.errors import CorruptFile
from tests.processes import Result, call_cli, run_cli
from tests.talking import talking_copy, write_text
from tests.tiny import save_tiny

USAGE, FAILURE = 2, 1
Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def mixtral(tiny_checkpoint: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a tokenizer; not to be changed."""
    return talking_copy(tiny_checkpoint("mixtral"), tmp_path_factory.mktemp("source") / "mixtral")


@pytest.fixture(scope="module")
def packed(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, packed; not to be changed."""
    return compress(mixtral, tmp_path_factory.mktemp("packed") / "mixtral", CompressOptions(bits=2.5))


@pytest.fixture
def damaged(mixtral: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(mixtral, tmp_path / "damaged"))


@pytest.fixture
def harmed(packed: Path, tmp_path: Path) -> Path:
    """A copy of the packed folder to damage."""
    return Path(shutil.copytree(packed, tmp_path / "harmed"))


def check_message(result: Result, code: int, *words: str) -> None:
    """One line on standard error with these words in it, that exit code, nothing on standard output."""
    assert result.code == code, result
    assert "Traceback" not in result.err
    assert result.err.startswith("error: "), result.err
    assert result.err.count("\n") == 1, result.err
    assert result.out == ""
    for word in words:
        assert word in result.err, result.err


def refused(model: object, code: int, *words: str, out: Path, arguments: tuple[object, ...] = ("--bits", 2.5)) -> None:
    """Compressing fails as `check_message` says, and nothing is at `out`, nor any work folder without finished work."""
    check_message(call_cli("compress", model, "-o", out, *arguments), code, *words)
    assert not out.exists()
    journal = out.with_name(out.name + ".partial") / "journal.jsonl"
    assert not journal.parent.exists() or len(journal.read_text().splitlines()) > 1


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint in one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


EXPERT = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
ROUTER = "model.layers.1.block_sparse_moe.gate.weight"


class TestTheFolder:
    """What is given as the model is not one that can be compressed."""

    def test_no_such_folder(self, tmp_path: Path) -> None:
        """A path that does not exist is named."""
        refused(tmp_path / "nowhere", FAILURE, "nowhere", "no such folder", out=tmp_path / "out")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        """A folder without config.json is not a model."""
        (tmp_path / "empty").mkdir()
        refused(tmp_path / "empty", FAILURE, "empty", "config.json", out=tmp_path / "out")

    def test_a_file(self, tmp_path: Path) -> None:
        """A file is not a model."""
        (tmp_path / "file.txt").write_text("hello")
        refused(tmp_path / "file.txt", FAILURE, "file.txt", "folder", out=tmp_path / "out")

    def test_no_weights(self, damaged: Path, tmp_path: Path) -> None:
        """A configuration without safetensors files is not enough."""
        (damaged / "model.safetensors").unlink()
        refused(damaged, FAILURE, "model.safetensors", out=tmp_path / "out")

    @pytest.mark.parametrize("text", ['{"model_type": "mix', "[1, 2]", "{}", "", "\xff\xfe"])
    def test_a_broken_configuration(self, text: str, damaged: Path, tmp_path: Path) -> None:
        """A config.json that is no JSON, or says nothing, is named."""
        (damaged / "config.json").write_bytes(text.encode("latin-1"))
        refused(damaged, FAILURE, str(damaged / "config.json"), out=tmp_path / "out")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model_type", "nonesuch"),
            ("hidden_size", "wide"),
            ("num_local_experts", -3),
            ("num_local_experts", 0),
            ("num_local_experts", 7),
            ("num_attention_heads", 0),
            ("hidden_size", 128),
            ("num_hidden_layers", 3),
        ],
    )
    def test_a_configuration_of_something_else(self, key: str, value: object, damaged: Path, tmp_path: Path) -> None:
        """Values that make no model, or another one than the weights are of, are refused."""
        change_json(damaged / "config.json", lambda config: config.update({key: value}))
        refused(damaged, FAILURE, out=tmp_path / "out")

    def test_a_dense_model(self, tmp_path: Path) -> None:
        """A model without MoE layers is refused by its type."""
        small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
        config = AutoConfig.for_model("llama", **small, num_key_value_heads=2, vocab_size=128)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
        refused(tmp_path / "dense", FAILURE, "llama", "no Mixture-of-Experts layers", out=tmp_path / "out")

    @pytest.mark.parametrize("model_type", ["jetmoe", "llama4_text"])
    def test_an_unsupported_architecture(self, model_type: str, tmp_path: Path) -> None:
        """A MoE architecture outside the fused-experts interface is refused by name, with what is missing."""
        small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 2}
        small |= {"intermediate_size_mlp": 64, "num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 128}
        config = AutoConfig.for_model(model_type, **small, kv_channels=32)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
        refused(tmp_path / "other", FAILURE, model_type, "not supported", "family file", out=tmp_path / "out")

    @pytest.mark.parametrize("method", ["gptq", "moesaic"])
    def test_a_quantized_source(self, method: str, damaged: Path, tmp_path: Path) -> None:
        """Weights that are quantized already are refused, with the method."""
        quantization = {"quantization_config": {"quant_method": method, "bits": 4}}
        change_json(damaged / "config.json", lambda config: config.update(quantization))
        refused(damaged, FAILURE, "already quantized", method, out=tmp_path / "out")

    def test_a_packed_source(self, packed: Path, tmp_path: Path) -> None:
        """A packed folder cannot be packed again."""
        refused(packed, FAILURE, "already quantized", "moesaic", out=tmp_path / "out")


class TestTheShards:
    """The files of the weights are damaged, missing or lie elsewhere."""

    @pytest.fixture
    def sharded(self, tmp_path: Path) -> Path:
        """A checkpoint in several files."""
        return save_tiny(tmp_path / "sharded", "mixtral", shard="100KB")

    def test_a_missing_shard(self, sharded: Path, tmp_path: Path) -> None:
        """The missing file is named."""
        gone = sorted(sharded.glob("model-*.safetensors"))[1]
        gone.unlink()
        refused(sharded, FAILURE, gone.name, "missing", out=tmp_path / "out")

    @pytest.mark.parametrize("kept", [0, 7, 300, -1])
    def test_a_truncated_shard(self, kept: int, sharded: Path, tmp_path: Path) -> None:
        """A file that ends early, in its header or its data, is named."""
        short = sorted(sharded.glob("model-*.safetensors"))[1]
        short.write_bytes(short.read_bytes()[:kept])
        refused(sharded, FAILURE, str(short), "truncated", out=tmp_path / "out")

    @pytest.mark.parametrize("target", ["../elsewhere.safetensors", "/elsewhere.safetensors"])
    def test_an_index_that_leaves_the_folder(self, target: str, sharded: Path, tmp_path: Path) -> None:
        """An index may not name a path outside the folder, whether or not there is a file."""
        shutil.copy(sorted(sharded.glob("model-*.safetensors"))[0], tmp_path / "elsewhere.safetensors")
        index = sharded / "model.safetensors.index.json"
        change_json(index, lambda data: data["weight_map"].update({EMBEDDING: target}))
        refused(sharded, FAILURE, str(index), target, "outside the folder", out=tmp_path / "out")

    def test_an_index_that_is_wrong(self, sharded: Path, tmp_path: Path) -> None:
        """An index that places a tensor in a file without it is refused with both names."""
        index = sharded / "model.safetensors.index.json"
        wrong = sorted(sharded.glob("model-*.safetensors"))[-1].name
        change_json(index, lambda data: data["weight_map"].update({EMBEDDING: wrong}))
        refused(sharded, FAILURE, str(index), EMBEDDING, wrong, out=tmp_path / "out")

    @pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}'])
    def test_a_broken_index(self, text: str, sharded: Path, tmp_path: Path) -> None:
        """An index that is no JSON object with a weight_map is named."""
        (sharded / "model.safetensors.index.json").write_text(text)
        refused(sharded, FAILURE, "model.safetensors.index.json", out=tmp_path / "out")

    @pytest.mark.parametrize(
        "entry",
        [
            5,
            {},
            {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
            {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]},
            {"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]},
            {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]},
            {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]},
        ],
    )
    def test_a_header_that_lies(self, entry: object, damaged: Path, tmp_path: Path) -> None:
        """Sizes in a header are checked before memory is taken."""
        header = json.dumps({EMBEDDING: entry}).encode()
        file = len(header).to_bytes(8, "little") + header + bytes(64)
        (damaged / "model.safetensors").write_bytes(file)
        refused(damaged, FAILURE, str(damaged / "model.safetensors"), EMBEDDING, out=tmp_path / "out")


class TestTheTensors:
    """The tensors are not those of the configuration, or hold no numbers."""

    @pytest.mark.parametrize(
        ("name", "other_bits"),
        [(EXPERT, 4), (QUERY, 4), (QUERY, 16), (EMBEDDING, 4), (ROUTER, 4), ("model.norm.weight", 4)],
    )
    def test_a_wrong_shape(self, name: str, other_bits: int, damaged: Path, tmp_path: Path) -> None:
        """A tensor of another shape is named with its file and shape, be it packed or copied."""
        change_tensors(damaged, lambda tensors: tensors.update({name: tensors[name][:-5].clone()}))
        words = (str(damaged / "model.safetensors"), name, "shape")
        arguments = ("--bits", 2.5, "--other-bits", other_bits)
        refused(damaged, FAILURE, *words, out=tmp_path / "out", arguments=arguments)

    def test_too_many_rows(self, damaged: Path, tmp_path: Path) -> None:
        """A tensor with more rows than the configuration says may not run over what lies behind it."""
        change_tensors(damaged, lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING].repeat(2, 1)}))
        refused(damaged, FAILURE, EMBEDDING, "shape", out=tmp_path / "out")

    @pytest.mark.parametrize(
        ("name", "value"), [(EXPERT, "nan"), (EXPERT, "-inf"), (QUERY, "inf"), (EMBEDDING, "nan"), (ROUTER, "nan")]
    )
    def test_no_number(self, name: str, value: str, damaged: Path, tmp_path: Path) -> None:
        """NaN and infinity are refused with file and tensor, wherever they are."""
        change_tensors(damaged, lambda tensors: tensors[name].view(-1)[5:6].fill_(float(value)))
        words = (str(damaged / "model.safetensors"), name, "NaN or infinite")
        refused(damaged, FAILURE, *words, out=tmp_path / "out")

    @pytest.mark.parametrize("name", [EXPERT, QUERY, EMBEDDING, ROUTER])
    def test_a_missing_tensor(self, name: str, damaged: Path, tmp_path: Path) -> None:
        """A tensor that is not there is missed before any work begins."""
        change_tensors(damaged, lambda tensors: tensors.pop(name))
        refused(damaged, FAILURE, str(damaged), out=tmp_path / "out")

    @pytest.mark.parametrize("name", [EXPERT, ROUTER, QUERY])
    def test_integers(self, name: str, damaged: Path, tmp_path: Path) -> None:
        """Weights that are whole numbers are not a checkpoint in floating point."""
        change_tensors(damaged, lambda tensors: tensors.update({name: tensors[name].to(torch.int32)}))
        refused(damaged, FAILURE, name, out=tmp_path / "out")


class TestTheOptions:
    """What is asked for does not exist or cannot be had."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--rule", "router_nrom"), ("scoring rule 'router_nrom'", "did you mean 'router_norm'")),
            (("--rule", "maxvar"), ("did you mean 'max_var'",)),
            (("--allocator", "three_levels"), ("allocator 'three_levels'", "did you mean 'three_level'")),
            (("--quantizer", "hqqq"), ("quantizer 'hqqq'", "did you mean 'hqq'")),
            (("--rule", "zzz"), ("Known: ", "random")),
            (("--group-size", 48), ("--group-size 48", "32, 64, 128")),
            (("--other-bits", 5), ("--other-bits 5", "1, 2, 3, 4, 8, 16")),
            (("--levels", "2,5"), ("--levels", "2, 5")),
            (("--levels", "3,2"), ("--levels", "ascending")),
            (("--rule", "router_norm", "--levels", "1,2,4"), ("--levels", "equally spaced")),
            (("--rule", "router_norm+max_var", "--zeta", 0.5), ("zeta", "0.5")),
            (("--allocator", "uniform", "--levels", "2,3"), ("--levels",)),
        ],
    )
    def test_unknown_names_and_values(
        self, arguments: tuple[object, ...], words: tuple[str, ...], mixtral: Path, tmp_path: Path
    ) -> None:
        """Unknown names are answered with the nearest, impossible values with the possible ones."""
        refused(mixtral, USAGE, *words, out=tmp_path / "out", arguments=("--bits", 2.5, *arguments))

    @pytest.mark.parametrize("bits", [16, 4])
    def test_an_unknown_rule_that_is_not_needed(self, bits: int, mixtral: Path, tmp_path: Path) -> None:
        """A misspelt rule is an error also where the budget leaves nothing to choose."""
        refused(mixtral, USAGE, "router_nrom", out=tmp_path / "o", arguments=("--bits", bits, "--rule", "router_nrom"))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--bits", 0.5), ("0.5", "[1, 16]")),
            (("--bits", 17), ("17", "1 and 16")),
            (("--bits", "nan"), ("nan", "1 and 16")),
            (("--bits", "inf"), ("inf", "1 and 16")),
            (("--bits", -1), ("-1", "1 and 16")),
            (("--bits", 0), ("0", "1 and 16")),
            (("--bits", 2.5, "--allocator", "uniform"), ("2.5", "1, 2, 3, 4, 8, 16")),
            (("--bits", 3.5, "--allocator", "three_level"), ("3.5", "[1, 3]")),
            (("--bits", 1.5, "--allocator", "two_level"), ("1.5", "[2, 3]")),
            (("--bits", 9, "--levels", "4,8"), ("9", "[4, 8]")),
        ],
    )
    def test_a_budget_out_of_reach(
        self, arguments: tuple[object, ...], words: tuple[str, ...], mixtral: Path, tmp_path: Path
    ) -> None:
        """A budget that no plan meets is answered with the reachable ones."""
        refused(mixtral, USAGE, "--bits", "out of reach", *words, out=tmp_path / "out", arguments=arguments)

    def test_budget_and_plan(self, mixtral: Path, tmp_path: Path) -> None:
        """Either a budget or a plan has to be given, and not both."""
        for arguments in ((), ("--bits", 2, "--plan", tmp_path / "plan.json")):
            refused(mixtral, USAGE, "--bits", "--plan", out=tmp_path / "out", arguments=arguments)


class TestThePlan:
    """A plan file that cannot be used."""

    LAYERS = ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")

    def use(self, tmp_path: Path, mixtral: Path, plan: object, *words: str) -> None:
        """Compress with a plan file of that content, and see it refused."""
        path = tmp_path / "plan.json"
        path.write_text(plan if isinstance(plan, str) else json.dumps(plan))
        refused(mixtral, FAILURE, *words, out=tmp_path / "out", arguments=("--plan", path))

    def plan(self, widths: object = "2 2 2 2 2 2 2 2", **more: Any) -> dict[str, Any]:
        """A plan for the tiny model, all right unless changed."""
        head = {"format": "moesaic-plan/1", "method": "by hand", "requested_bits": None}
        return {**head, "layers": {self.LAYERS[0]: "2 2 2 2 2 2 2 2", self.LAYERS[1]: widths}, **more}

    def test_another_model(self, tmp_path: Path, mixtral: Path) -> None:
        """Missing layers, unknown layers and other numbers of experts say that the plan is for another model."""
        good = self.plan()["layers"]
        self.use(tmp_path, mixtral, self.plan(layers={self.LAYERS[0]: good[self.LAYERS[0]]}), self.LAYERS[1], "another")
        self.use(tmp_path, mixtral, self.plan(layers={**good, "model.layers.9.mlp.experts": "2"}), "model.layers.9")
        self.use(tmp_path, mixtral, self.plan("2 2 2"), self.LAYERS[1], "3 experts", "8", "another model")

    @pytest.mark.parametrize("width", ["5", "-1", "2.5", "two"])
    def test_a_bad_width(self, width: str, tmp_path: Path, mixtral: Path) -> None:
        """A width that does not exist is named with its layer."""
        self.use(tmp_path, mixtral, self.plan(f"2 2 2 {width} 2 2 2 2"), self.LAYERS[1], width)

    @pytest.mark.parametrize("widths", [5, None, [2, 2, 2, 2.5, 2, 2, 2, 2], [[2]], {"gate_up": "2"}, [True] * 8])
    def test_widths_of_another_form(self, widths: object, tmp_path: Path, mixtral: Path) -> None:
        """Widths that are not a line of whole numbers are refused and not rounded."""
        self.use(tmp_path, mixtral, self.plan(widths), self.LAYERS[1])

    def test_entries_of_different_length(self, tmp_path: Path, mixtral: Path) -> None:
        """gate_up and down need a width for the same experts."""
        self.use(tmp_path, mixtral, self.plan({"gate_up": "2 2 2 2 2 2 2 2", "down": "2"}), self.LAYERS[1], "8", "1")

    def test_more_than_its_own_budget(self, tmp_path: Path, mixtral: Path) -> None:
        """An edited plan that spends more than the budget it carries is refused, with the remedy."""
        self.use(tmp_path, mixtral, self.plan("8 2 2 2 2 2 2 2", requested_bits=2), "budget", "requested_bits")

    @pytest.mark.parametrize("text", ['{"format"', "[]", "{}", '{"format": "moesaic-plan/2", "layers": {}}', "\x00"])
    def test_not_a_plan(self, text: str, tmp_path: Path, mixtral: Path) -> None:
        """What is not a plan file at all is named."""
        self.use(tmp_path, mixtral, text, "plan")

    @pytest.mark.parametrize("requested", ["two", [2]])
    def test_a_budget_that_is_no_number(self, requested: object, tmp_path: Path, mixtral: Path) -> None:
        """The budget in a plan is a number or null."""
        self.use(tmp_path, mixtral, self.plan(requested_bits=requested), "requested_bits")

    def test_no_such_plan(self, tmp_path: Path, mixtral: Path) -> None:
        """A plan that is not there is named."""
        refused(mixtral, FAILURE, "nowhere.json", out=tmp_path / "o", arguments=("--plan", tmp_path / "nowhere.json"))


class TestTheInitialRouters:
    """--initial names something that has no routers of this model."""

    def test_missing(self, mixtral: Path, tmp_path: Path) -> None:
        """A path that does not exist is named."""
        arguments = ("--bits", 2.5, "--initial", tmp_path / "nowhere")
        refused(mixtral, FAILURE, "--initial", "nowhere", out=tmp_path / "out", arguments=arguments)

    def test_of_another_model(self, mixtral: Path, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
        """A checkpoint of another architecture, or of another width, does not fit."""
        wide = save_tiny(tmp_path / "wide", "mixtral", hidden_size=128)
        for other in (tiny_checkpoint("qwen3_moe"), wide):
            arguments = ("--bits", 2.5, "--initial", other)
            refused(mixtral, FAILURE, str(other), "model", out=tmp_path / "out", arguments=arguments)

    def test_a_file_without_routers(self, mixtral: Path, tmp_path: Path) -> None:
        """A safetensors file without the routers says what it was searched for."""
        save_file({"something": torch.ones(3)}, tmp_path / "routers.safetensors")
        arguments = ("--bits", 2.5, "--initial", tmp_path / "routers.safetensors")
        refused(mixtral, FAILURE, "routers.safetensors", "gate.weight", out=tmp_path / "out", arguments=arguments)

    def test_not_a_file_of_tensors(self, mixtral: Path, tmp_path: Path) -> None:
        """Any other file is refused."""
        (tmp_path / "notes.txt").write_text("hello")
        arguments = ("--bits", 2.5, "--initial", tmp_path / "notes.txt")
        refused(mixtral, FAILURE, "notes.txt", out=tmp_path / "out", arguments=arguments)


class TestTheOutput:
    """The place of the output is taken, or has no room."""

    def test_it_exists(self, mixtral: Path, packed: Path, harmed: Path) -> None:
        """An output that exists is kept unless --overwrite is given."""
        before = snapshot(harmed)
        result = run_cli("compress", mixtral, "-o", harmed, "--bits", 2)
        check_message(result, USAGE, str(harmed), "exists", "--overwrite")
        assert snapshot(harmed) == before

    def test_overwrite_replaces_it(self, mixtral: Path, harmed: Path) -> None:
        """--overwrite puts the new output in the place of the old one."""
        before = snapshot(harmed)
        assert run_cli("compress", mixtral, "-o", harmed, "--bits", 2, "--overwrite").code == 0
        assert json.loads((harmed / "moesaic.json").read_text())["code_bits"] == 2
        assert snapshot(harmed) != before
        assert not harmed.with_name("harmed.partial").exists()

    @pytest.mark.parametrize("fault", ["tensor", "rule", "budget", "disk"])
    def test_a_failed_overwrite_changes_nothing(self, fault: str, damaged: Path, harmed: Path) -> None:
        """A run that fails with --overwrite leaves the old output untouched."""
        before = snapshot(harmed)
        arguments: dict[str, tuple[object, ...]] = {"rule": ("--rule", "nonesuch"), "budget": ("--bits", 17)}
        if fault == "tensor":
            change_tensors(damaged, lambda tensors: tensors["lm_head.weight"].view(-1)[5:6].fill_(float("nan")))
        result = run_cli(
            "compress",
            *(damaged, "-o", harmed, "--bits", 2.5, "--overwrite", *arguments.get(fault, ())),
            file_bytes=20_000 if fault == "disk" else None,
        )
        check_message(result, USAGE if fault in arguments else FAILURE)
        assert snapshot(harmed) == before

    def test_overwrite_touches_only_our_folders(self, mixtral: Path, tmp_path: Path) -> None:
        """--overwrite does not replace a file, a link, or a folder that moesaic did not write."""
        (tmp_path / "file").write_text("precious")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "thesis.txt").write_text("precious")
        (tmp_path / "link").symlink_to(tmp_path / "folder")
        for name in ("file", "folder", "link"):
            result = run_cli("compress", mixtral, "-o", tmp_path / name, "--bits", 2, "--overwrite")
            check_message(result, USAGE, name, "--overwrite")
        assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "thesis.txt").read_text() == "precious"
        assert (tmp_path / "link").is_symlink()

    def test_it_is_the_source(self, mixtral: Path) -> None:
        """The source is never replaced by the output, whatever is asked."""
        before = snapshot(mixtral)
        for more in ((), ("--overwrite",)):
            check_message(run_cli("compress", mixtral, "-o", mixtral, "--bits", 2, *more), USAGE, str(mixtral))
        assert snapshot(mixtral) == before

    def test_its_parent_is_a_file(self, mixtral: Path, tmp_path: Path) -> None:
        """An output below a file cannot be made."""
        (tmp_path / "file").write_text("")
        check_message(run_cli("compress", mixtral, "-o", tmp_path / "file" / "out", "--bits", 2), FAILURE, "file")

    @pytest.mark.parametrize("limit", [500, 20_000])
    @pytest.mark.parametrize("shard_size", [5, 0.001])
    def test_no_room(self, limit: int, shard_size: float, mixtral: Path, tmp_path: Path) -> None:
        """A file that may not grow stops the run with a word on room, and leaves nothing behind."""
        arguments = ("--bits", 2.5, "--shard-size", shard_size)
        result = run_cli("compress", mixtral, "-o", tmp_path / "out", *arguments, file_bytes=limit)
        check_message(result, FAILURE, "out.partial", "no room")
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.partial").exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
    @pytest.mark.parametrize("kilobytes", [16, 160, 180, 196])
    def test_a_full_disk(self, kilobytes: int, mixtral: Path, small_disk: Callable[[int], Path]) -> None:
        """A disk that fills up, early or late, stops the run with one line and leaves nothing under the target's name.

        After there is room, the same command finishes.
        """
        disk = small_disk(kilobytes)
        result = run_cli("compress", mixtral, "-o", disk / "out", "--bits", 2.5)
        if result.code != 0:
            check_message(result, FAILURE, str(disk))
            assert not (disk / "out").exists()
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            assert run_cli("compress", mixtral, "-o", disk / "out", "--bits", 2.5).code == 0
        assert run_cli("verify", disk / "out").code == 0
        assert [path.name for path in disk.iterdir()] == ["out"]

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Callable[[int], Path]]:
        """`small_disk(kilobytes)`: a folder on a disk of that size."""
        disk = tmp_path / "disk"
        disk.mkdir()

        def mount(kilobytes: int) -> Path:
            command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                pytest.skip("mounting is not allowed here")
            return disk

        yield mount
        if os.path.ismount(disk):
            subprocess.run(["umount", disk], check=True)


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_flips(folder: Path, *, command: bool) -> None:
    """Flip a bit of each file and see it found, by the command (once a file) or by the library (in three places)."""
    for path in sorted(folder.iterdir()):
        sound = path.read_bytes()
        for place in (len(sound) // 2,) if command else (0, len(sound) - 1):
            data = bytearray(sound)
            data[place] ^= 4
            if path.name == "moesaic.json":
                continue
            path.write_bytes(data)
            if command:
                check_message(call_cli("verify", folder), FAILURE, str(path), "SHA-256")
            else:
                with pytest.raises(CorruptFile, match="SHA-256"):
                    verify(folder)
        path.write_bytes(sound)


class TestThePackedFolder:
    """A packed folder was damaged on its way."""

    def test_flipped_bits(self, harmed: Path) -> None:
        """One flipped bit, anywhere in any file, is found."""
        check_flips(harmed, command=True)
        check_flips(harmed, command=False)
        assert call_cli("verify", harmed).code == 0

    def test_missing_and_short_files(self, harmed: Path) -> None:
        """A file that is gone or has lost its end is named by verify, and does not load."""
        path = harmed / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-64])
        check_message(call_cli("verify", harmed), FAILURE, str(path), "bytes")
        check_message(call_cli("generate", harmed, "--prompt", "a"), FAILURE, str(harmed))
        path.unlink()
        check_message(call_cli("verify", harmed), FAILURE, str(path), "missing")
        check_message(call_cli("generate", harmed, "--prompt", "a"), FAILURE, str(harmed))

    def test_an_unknown_version(self, harmed: Path) -> None:
        """Another format version is refused by every command, with both numbers."""
        change_json(harmed / "moesaic.json", lambda manifest: manifest.update(format_version=2))
        for command in (
            ("verify", harmed),
            ("generate", harmed, "--prompt", "a"),
            ("evaluate", harmed, "--text", __file__),
        ):
            check_message(call_cli(*command), FAILURE, "format_version is 2", "reads 1")

    def test_an_unknown_version_in_the_configuration(self, harmed: Path) -> None:
        """The version in config.json counts too."""
        path = harmed / "config.json"
        change_json(path, lambda config: config["quantization_config"].update(format_version=7))
        check_message(call_cli("generate", harmed, "--prompt", "a"), FAILURE, "format_version is 7")

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", '{"format_version": 1}', '{"format_version": 1, "files": 3}']
    )
    def test_a_broken_manifest(self, text: str, harmed: Path) -> None:
        """A manifest that cannot be read is named by every command."""
        (harmed / "moesaic.json").write_text(text)
        for command in (
            ("verify", harmed),
            ("generate", harmed, "--prompt", "a"),
            ("evaluate", harmed, "--text", __file__),
        ):
            check_message(call_cli(*command), FAILURE, str(harmed / "moesaic.json"))

    @pytest.mark.parametrize("files", [{"a": 3}, {"a": {}}, {"../a": {"bytes": 1, "sha256": ""}}, {"a": None}])
    def test_a_manifest_with_odd_files(self, files: object, harmed: Path) -> None:
        """What the manifest says of files is checked before it is used."""
        change_json(harmed / "moesaic.json", lambda manifest: manifest.update(files=files))
        check_message(call_cli("verify", harmed), FAILURE, str(harmed))

    def test_a_manifest_without_sizes(self, harmed: Path, tmp_path: Path) -> None:
        """A manifest that lacks a figure is damaged."""
        change_json(harmed / "moesaic.json", lambda manifest: manifest.pop("stored_bpw"))
        text = write_text(tmp_path / "text.txt")
        result = call_cli("evaluate", harmed, "--text", text, "--no-speed")
        check_message(result, FAILURE, "moesaic.json", "stored_bpw")

    @pytest.mark.parametrize("text", ['{"model_type"', "{}", None])
    def test_a_broken_configuration(self, text: str | None, harmed: Path) -> None:
        """A packed folder whose config.json is damaged or gone says so."""
        if text is None:
            (harmed / "config.json").unlink()
        else:
            (harmed / "config.json").write_text(text)
        check_message(call_cli("generate", harmed, "--prompt", "a"), FAILURE, str(harmed))

    @pytest.mark.parametrize(
        "change",
        [
            lambda q: q.pop("linears"),
            lambda q: q.update(linears={}),
            lambda q: q["linears"].update(modules=["model.nonesuch"]),
            lambda q: q["linears"].update(modules=["model.layers"]),
            lambda q: q["linears"].update(bits=3),
            lambda q: q["linears"].update(bits="four"),
            lambda q: q.update(group_size=48),
            lambda q: q.update(group_size=32),
            lambda q: q.update(symmetric=False),
            lambda q: q.update(surprise=1),
            lambda q: q.update(experts={}),
            lambda q: q["experts"].update({"model.layers.9.mlp.experts": {"gate_up": "2", "down": "2"}}),
            lambda q: q["experts"]["model.layers.0.mlp.experts"].update(gate_up="2 2 2"),
            lambda q: q["experts"]["model.layers.0.mlp.experts"].update(gate_up="5 2 2 2 2 2 2 2"),
            lambda q: q["experts"]["model.layers.0.mlp.experts"].update(gate_up="8 8 8 8 8 8 8 8"),
            lambda q: q["experts"]["model.layers.0.mlp.experts"].update(gate_up="many"),
            lambda q: q["experts"]["model.layers.0.mlp.experts"].pop("down"),
            lambda q: q["experts"].update({"model.layers.0.mlp.experts": "2"}),
        ],
    )
    def test_a_configuration_that_does_not_fit_the_tensors(self, change: Callable[[Any], Any], harmed: Path) -> None:
        """A quantization_config that contradicts the files never loads, and never with random weights."""
        change_json(harmed / "config.json", lambda config: change(config["quantization_config"]))
        check_message(call_cli("generate", harmed, "--prompt", "a"), FAILURE)

    def test_no_quantization_config(self, harmed: Path) -> None:
        """Without its quantization_config a packed folder does not load as an ordinary model."""
        change_json(harmed / "config.json", lambda config: config.pop("quantization_config"))
        check_message(call_cli("generate", harmed, "--prompt", "a"), FAILURE, str(harmed))


class TestReadersOfModels:
    """verify, generate, evaluate, score and allocate on what they cannot use."""

    def test_not_a_model(self, tmp_path: Path) -> None:
        """A folder that is not there, or holds something else, is named by every command."""
        (tmp_path / "empty").mkdir()
        text = write_text(tmp_path / "text.txt")
        for folder in (tmp_path / "empty", tmp_path / "nowhere"):
            for command in (
                ("verify", folder),
                ("generate", folder, "--prompt", "a"),
                ("evaluate", folder, "--text", text),
                ("score", folder),
            ):
                check_message(call_cli(*command), FAILURE, str(folder))

    def test_verify_of_an_ordinary_checkpoint(self, mixtral: Path) -> None:
        """Only packed folders have hashes to check."""
        check_message(call_cli("verify", mixtral), FAILURE, "moesaic.json", "moesaic compress")

    def test_no_tokenizer(self, harmed: Path, tmp_path: Path) -> None:
        """A model without a tokenizer cannot read text."""
        for path in harmed.glob("tokenizer*"):
            path.unlink()
        text = write_text(tmp_path / "text.txt")
        for command in (("generate", harmed, "--prompt", "a"), ("evaluate", harmed, "--text", text, "--no-speed")):
            check_message(call_cli(*command), FAILURE, str(harmed), "tokenizer")

    def test_a_prompt_of_nothing(self, packed: Path) -> None:
        """An empty prompt is refused."""
        check_message(call_cli("generate", packed, "--prompt", ""), USAGE, "--prompt")

    @pytest.mark.parametrize(
        ("data", "words"),
        [(b"", ("holds no text",)), (b" \n", ("holds no text",)), (b"abc\xff", ("not UTF-8", "byte 3"))],
    )
    def test_unreadable_text(self, data: bytes, words: tuple[str, ...], packed: Path, tmp_path: Path) -> None:
        """Empty text and text in another encoding are refused with the place."""
        (tmp_path / "text.txt").write_bytes(data)
        check_message(call_cli("evaluate", packed, "--text", tmp_path / "text.txt"), FAILURE, "text.txt", *words)

    def test_missing_or_short_text(self, packed: Path, tmp_path: Path) -> None:
        """A text that is not there, is a folder, or has a single token, is refused."""
        check_message(call_cli("evaluate", packed, "--text", tmp_path / "nowhere.txt"), FAILURE, "nowhere.txt")
        check_message(call_cli("evaluate", packed, "--text", tmp_path), FAILURE, str(tmp_path))
        (tmp_path / "one.txt").write_text("a")
        check_message(call_cli("evaluate", packed, "--text", tmp_path / "one.txt"), FAILURE, "1 tokens", "2")

    def test_windows_that_cannot_be(self, packed: Path, tmp_path: Path) -> None:
        """A window longer than the model reads, or a stride longer than the window, is refused with both numbers."""
        text = write_text(tmp_path / "text.txt")
        check_message(call_cli("evaluate", packed, "--text", text, "--window", 129), USAGE, "129", "128")
        result = call_cli("evaluate", packed, "--text", text, "--window", 16, "--stride", 17)
        check_message(result, USAGE, "--stride 17", "16")

    def test_another_vocabulary(self, packed: Path, tmp_path: Path) -> None:
        """A reference with another vocabulary cannot be compared with."""
        other = save_tiny(tmp_path / "other", "mixtral", vocab_size=160)
        text = write_text(tmp_path / "text.txt")
        result = call_cli("evaluate", packed, "--text", text, "--no-speed", "--against", other)
        check_message(result, FAILURE, "vocabular", "128", "160")

    def test_nowhere_to_save(self, packed: Path, tmp_path: Path) -> None:
        """A file of records in a folder that does not exist is refused before anything is measured."""
        text = write_text(tmp_path / "text.txt")
        result = call_cli("evaluate", packed, "--text", text, "--save", tmp_path / "nowhere" / "records.json")
        check_message(result, USAGE, "--save", "nowhere")

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "{}",
            '{"format": "moesaic-scores/1", "layers": {"model.layers.0.mlp.experts": ["x"]}}',
            '{"format": "moesaic-scores/1", "layers": {"model.layers.0.mlp.experts": 3}}',
            '{"format": "moesaic-scores/1", "layers": {"model.layers.0.mlp.experts": [NaN]}}',
            '{"format": "moesaic-scores/1", "layers": {"model.layers.0.mlp.experts": [1, 2]}}',
            '{"format": "moesaic-scores/1", "layers": {}}',
        ],
    )
    def test_scores_that_cannot_be_used(self, text: str, mixtral: Path, tmp_path: Path) -> None:
        """Scores that are damaged, or of another model, make no plan."""
        (tmp_path / "scores.json").write_text(text)
        out = tmp_path / "plan.json"
        command = ("allocate", tmp_path / "scores.json", "--model", mixtral, "--bits", 2.5, "-o", out)
        check_message(call_cli(*command), FAILURE)
        assert not out.exists()


# ---- skipping policies ----


@pytest.fixture
def pruned(harmed: Path, tmp_path: Path) -> Path:
    """A packed folder with a policy, to damage."""
    text = write_text(tmp_path / "calibration.txt", 800)
    result = call_cli(
        "prune", harmed, "--policy", "threshold", "--target", 0.8, "--calibration", text, "--window", 40, "--quiet"
    )
    assert result.code == 0, result.err
    return harmed


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--policy", "otpp"), USAGE, ("unknown skipping policy", "otp")),
        (("--policy", "threshold", "--target", 0.5), USAGE, ("--target 0.5", "above 0.5")),
        (("--policy", "threshold", "--target", 1.2), USAGE, ("--target 1.2",)),
        (("--policy", "threshold", "--target", "nan"), USAGE, ("--target nan",)),
        (("--policy", "odp", "--protect", 1), USAGE, ("protect",)),
        (("--policy", "odp", "--candidates", "subsets"), USAGE, ("candidates",)),
        (("--candidates", "all"), USAGE, ("candidates",)),
        (("--window", 4096), USAGE, ("--window 4096",)),
        (("--window", 120), FAILURE, ("800 tokens", "at least 16")),
    ],
)
def test_pruning_with_what_cannot_be(
    arguments: tuple[object, ...], code: int, words: tuple[str, ...], pruned: Path, tmp_path: Path
) -> None:
    """A wrong target, policy, knob or text is one line, and the folder keeps the policy that it had."""
    before = {path.name: path.read_bytes() for path in pruned.iterdir()}
    result = call_cli("prune", pruned, "--calibration", tmp_path / "calibration.txt", "--window", 40, *arguments)
    check_message(result, code, *words)
    assert {path.name: path.read_bytes() for path in pruned.iterdir()} == before


def test_pruning_what_is_not_packed(mixtral: Path, tmp_path: Path) -> None:
    """An ordinary checkpoint is refused, and nothing is written into it."""
    before = {path.name for path in mixtral.iterdir()}
    check_message(call_cli("prune", mixtral, "--target", 0.8), FAILURE, "moesaic.json")
    assert {path.name for path in mixtral.iterdir()} == before


def test_a_policy_of_another_plan(pruned: Path, mixtral: Path, tmp_path: Path) -> None:
    """A policy copied beside another packing of the same model is refused, and can be turned off."""
    other = compress(mixtral, tmp_path / "other", CompressOptions(bits=3))
    for path in pruned.glob("pruning*"):
        shutil.copy(path, other / path.name)
    text = write_text(tmp_path / "text.txt", 200)
    arguments = ("evaluate", other, "--text", text, "--window", 40, "--no-speed", "--json")
    check_message(call_cli(*arguments), FAILURE, "another bit plan", "prune")
    check_message(call_cli("verify", other), FAILURE, "another bit plan")
    assert call_cli(*arguments, "--no-pruning").code == 0


def test_a_damaged_policy(pruned: Path, tmp_path: Path) -> None:
    """Changed tensors of a policy are noticed by loading and by verify."""
    file = next(pruned.glob("pruning-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-2] ^= 4
    file.write_bytes(bytes(data))
    check_message(call_cli("verify", pruned), FAILURE, file.name)
    check_message(call_cli("generate", pruned, "--prompt", "The"), FAILURE, file.name)
