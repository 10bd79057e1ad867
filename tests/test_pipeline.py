"""The road in a row: what the output says of itself, and that it depends on nothing but input and options."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import moesaic
from moesaic import Checkpoint, CompressOptions, compress
from moesaic.errors import CorruptFile, JobMismatch, OutputExists, UsageError
from moesaic.pipeline import make_plan, score
from tests.tiny import save_tiny

Tiny = Callable[[str], Path]
OPTIONS = CompressOptions(bits=2.5)


class Counter:
    """A progress that counts; it can raise on the way."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.total = self.done = self.calls = 0
        self.stop_after = stop_after

    def start(self, what: str, total: int) -> None:
        """Work begins."""
        self.total, self.done = total, 0

    def advance(self, steps: int) -> None:
        """Steps are done."""
        self.done += steps
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest."""
    return json.loads((folder / "moesaic.json").read_text())


def test_the_manifest(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """The manifest has format, versions, source, options, plan, scores, sizes and the hash of every other file."""
    out = compress(tiny_checkpoint("mixtral"), tmp_path / "out", OPTIONS)
    found = manifest_of(out)
    assert found["format_version"] == 1
    assert found["source"]["model_type"] == "mixtral"
    assert found["options"] == OPTIONS.recorded()
    assert found["plan"]["requested_bits"] == found["plan"]["reached_bits"] == found["code_bits"] == 2.5
    assert found["scores"]["rule"] == "alpha_tail"
    assert set(found["versions"]) == {"moesaic", "torch", "transformers", "safetensors", "python"}
    assert set(found["files"]) == {path.name for path in out.iterdir()} - {"moesaic.json"}
    for name, said in found["files"].items():
        data = (out / name).read_bytes()
        assert said == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert moesaic.verify(out) == found


def test_the_output_does_not_depend_on_where_it_lies(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Other folders, names of outputs and file times give the same bytes; nothing in them is of this machine."""
    source = tiny_checkpoint("mixtral")
    moved = Path(shutil.copytree(source, tmp_path / "elsewhere" / source.name))
    os.utime(moved / "model.safetensors", (1, 1))
    one = compress(source, tmp_path / "one", OPTIONS)
    two = compress(moved, tmp_path / "below" / "two", OPTIONS)
    assert files_of(one) == files_of(two)
    for data in files_of(one).values():
        assert str(tmp_path).encode() not in data


def test_companions_are_copied(own_checkpoint: Tiny, tmp_path: Path) -> None:
    """Tokenizer, generation settings, templates and licences go along; other files do not."""
    source = own_checkpoint("mixtral")
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja", "LICENSE", "README.md", "optimizer.bin"):
        (source / name).write_text(name)
    out = compress(source, tmp_path / "out", OPTIONS)
    copied = {"tokenizer.json", "tokenizer.model", "chat_template.jinja", "LICENSE", "generation_config.json"}
    assert {path.name for path in out.iterdir()} == copied | {
        "config.json",
        "model.safetensors",
        "moesaic.json",
        "recipe.yaml",
    }
    assert (out / "LICENSE").read_text() == "LICENSE"


def test_the_configuration_is_the_sources(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """config.json is the source's with quantization_config added."""
    source = tiny_checkpoint("mixtral")
    out = compress(source, tmp_path / "out", OPTIONS)
    found = json.loads((out / "config.json").read_text())
    assert found.pop("quantization_config")["quant_method"] == "moesaic"
    assert found == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "switch_transformers"])
@pytest.mark.parametrize("bits", [2.5, 16])
def test_progress_is_counted_in_weights(family: str, bits: float, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """The progress ends at its total, which is the number of weights."""
    counter = Counter()
    compress(tiny_checkpoint(family), tmp_path / "out", CompressOptions(bits=bits), progress=counter)
    assert counter.done == counter.total > 100_000


@pytest.mark.parametrize("calls", [0, 19, 28, 41])
def test_interrupted_anywhere_and_repeated(calls: int, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Stopped at any step and repeated, the bytes are the same; only the finished part is kept meanwhile."""
    source = tiny_checkpoint("mixtral")
    wanted = files_of(compress(source, tmp_path / "wanted", OPTIONS))
    with pytest.raises(KeyboardInterrupt):
        compress(source, tmp_path / "out", OPTIONS, progress=Counter(stop_after=calls))
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists() == (calls > 16 + 8)  # 16 experts are scored, a layer has eight
    counter = Counter()
    compress(source, tmp_path / "out", OPTIONS, progress=counter)
    assert counter.done == counter.total
    assert files_of(tmp_path / "out") == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "wanted"]


def test_a_changed_source_is_noticed(own_checkpoint: Tiny, tmp_path: Path) -> None:
    """An unfinished run of a source that has changed since is not gone on with."""
    source = own_checkpoint("mixtral")
    with pytest.raises(KeyboardInterrupt):
        compress(source, tmp_path / "out", OPTIONS, progress=Counter(stop_after=16 + 12))  # after scoring
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobMismatch, match=r"changed: source\.model\.safetensors"):
        compress(source, tmp_path / "out", OPTIONS)
    out = compress(source, tmp_path / "out", OPTIONS, overwrite=True)
    assert files_of(out) == files_of(compress(source, tmp_path / "fresh", OPTIONS))


def test_the_content_hash_is_of_the_weights(own_checkpoint: Tiny, tmp_path: Path) -> None:
    """The source's digest follows its weights, and neither the options nor what else is in the file."""
    source = own_checkpoint("mixtral")

    def digest(name: str, options: CompressOptions = OPTIONS) -> str:
        return manifest_of(compress(source, tmp_path / name, options))["source"]["content_sha256"]

    first = digest("a")
    assert digest("b", CompressOptions(bits=1)) == first
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert digest("c") != first


def test_an_output_that_exists(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """An output is replaced only when asked for."""
    source = tiny_checkpoint("mixtral")
    out = compress(source, tmp_path / "out", OPTIONS)
    before = files_of(out)
    with pytest.raises(OutputExists):
        compress(source, out, CompressOptions(bits=1))
    assert files_of(out) == before
    with pytest.raises(KeyboardInterrupt):
        compress(source, out, CompressOptions(bits=1), overwrite=True, progress=Counter(stop_after=12))
    assert files_of(out) == before
    compress(source, out, CompressOptions(bits=1), overwrite=True)
    assert manifest_of(out)["code_bits"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_the_output(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """With overwrite an empty folder is as good as none, unless it is the source."""
    (tmp_path / "out").mkdir()
    compress(tiny_checkpoint("mixtral"), tmp_path / "out", OPTIONS, overwrite=True)
    (tmp_path / "source").mkdir()
    with pytest.raises(UsageError, match="is the checkpoint itself"):
        compress(tmp_path / "source", tmp_path / "source", OPTIONS, overwrite=True)


def test_a_bad_source_leaves_no_work(own_checkpoint: Tiny, tmp_path: Path) -> None:
    """A source that turns out to be damaged late in the run leaves nothing: a sound copy starts anew."""
    source = own_checkpoint("mixtral")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"][3, 3] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptFile, match=r"lm_head\.weight"):
        compress(source, tmp_path / "out", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["own-mixtral"]


def test_initial_routers_from_folder_and_file(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """The routers before training may be a checkpoint, or a file with the routers alone under either name."""
    final = Checkpoint.open(tiny_checkpoint("mixtral"))
    start = save_tiny(tmp_path / "start", "mixtral", seed=5)
    tensors = load_file(start / "model.safetensors")
    routers = {name: tensor for name, tensor in tensors.items() if name.endswith("gate.weight")}
    renamed = {name.replace("block_sparse_moe", "mlp"): tensor for name, tensor in routers.items()}
    save_file(routers, tmp_path / "stored.safetensors")
    save_file(renamed, tmp_path / "module.safetensors")
    places = [start, tmp_path / "stored.safetensors", tmp_path / "module.safetensors"]
    found = [score(final, CompressOptions(bits=2, rule="router_norm", initial=place)) for place in places]
    assert found[0].layers == found[1].layers == found[2].layers
    assert found[0].layers != score(final, CompressOptions(bits=2, rule="router_norm")).layers
    for layer in final.layers:
        old, new = (folder.router(layer).double().norm(dim=1) for folder in (Checkpoint.open(start), final))
        assert found[0].layers[layer.name] == pytest.approx((old - new).tolist())


def test_scores_are_made_where_they_decide(tiny_checkpoint: Tiny) -> None:
    """A uniform plan needs no scores and reads no weights; any other has them, and keeps to its budget."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    scores, plan = make_plan(checkpoint, CompressOptions(bits=2, allocator="uniform"))
    assert scores is None
    assert checkpoint.bytes_read == 0
    assert set(plan.layers["model.layers.0.mlp.experts"].down) == {2}
    scores, plan = make_plan(checkpoint, CompressOptions(bits=2.4))
    assert scores is not None
    assert plan.reached_bits([layer.shape for layer in checkpoint.layers]) == 2.375


def test_random_rules_follow_their_seed(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """The same seed gives the same folder, another seed another plan."""
    source = tiny_checkpoint("mixtral")
    plans = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = compress(source, tmp_path / name, CompressOptions(bits=2.5, rule="random", seed=seed))
        plans.append(manifest_of(out)["plan"]["layers"])
    assert plans[0] == plans[1] != plans[2]
