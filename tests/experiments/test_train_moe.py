"""The training recipe at toy size: every architecture, resumption, snapshots and export."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.train_moe import make_calibration
from experiments.train_moe.__main__ import run
from experiments.train_moe.data import SEPARATOR, corrupt_spans, read_documents
from experiments.train_moe.recipe import Recipe, load_recipe
from experiments.train_moe.train import Workspace, snapshot_steps
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "experiments" / "train_moe" / "recipes"
TINY = RECIPES / "tiny_mixtral.json"
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
FINE = {**COMMON, "moe_intermediate_size": 16, "num_key_value_heads": 1}
SWITCH = {"d_model": 32, "d_ff": 32, "d_kv": 16, "num_heads": 2, "num_experts": 4, "expert_capacity": 32}
SWITCH |= {f"num_{kind}layers": 2 for kind in ("", "decoder_", "sparse_encoder_", "sparse_decoder_")}
OTHER_CONFIGS = {
    "qwen2_moe": {**FINE, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**FINE, "head_dim": 16},
    "olmoe": COMMON,
    "switch_transformers": SWITCH,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up corpus of two domains with little vocabulary."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    vocabularies = {
        "prose": "the a cat dog bird sees hears likes small large old and then never .",
        "code": "def return if else for in x y z = + ( ) : foo bar 0 1",
    }
    for domain, words in vocabularies.items():
        for split, documents in (("train", 40), ("valid", 4), ("test", 4)):
            texts = [" ".join(rng.choices(words.split(), k=120)) for _ in range(documents)]
            (folder / f"{domain}.{split}.txt").write_text(SEPARATOR.join(texts), encoding="utf-8")
    return folder


def toy_recipe(model_type: str) -> Recipe:
    """The tiny recipe with another architecture in it."""
    if model_type == "mixtral":
        return load_recipe(TINY)
    return load_recipe(TINY, model_type=model_type, config=OTHER_CONFIGS[model_type])


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """An undisturbed run of the tiny recipe."""
    space = Workspace(tmp_path_factory.mktemp("finished"))
    assert run(load_recipe(TINY), corpus, space)
    return space


@pytest.mark.parametrize("model_type", ["mixtral", *OTHER_CONFIGS])
def test_every_architecture_trains_and_exports(model_type: str, corpus: Path, tmp_path: Path) -> None:
    space, recipe = Workspace(tmp_path), toy_recipe(model_type)
    assert run(recipe, corpus, space)
    auto = AutoModelForSeq2SeqLM if recipe.seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(space.export)
    tokenizer = AutoTokenizer.from_pretrained(space.export)
    assert model.dtype == torch.bfloat16
    ids = tokenizer("the cat sees the dog", return_tensors="pt").input_ids
    assert model.generate(input_ids=ids, max_new_tokens=4, do_sample=False).shape[0] == 1
    metrics = json.loads(space.metrics.read_text())
    assert set(metrics["test"]) == {"prose", "code", "overall"}
    assert metrics["test"]["overall"]["perplexity"] < recipe.vocab_size
    exported = load_file(space.export / "model.safetensors")
    initial = load_file(space.export / "initial_routers.safetensors")
    assert initial
    assert all(tensor.dtype == torch.float32 for tensor in initial.values())
    assert {name: tensor.shape for name, tensor in initial.items()} == {n: exported[n].shape for n in initial}
    last = load_file(space.routers(recipe.steps))
    pairs = zip(sorted(initial), sorted(last), strict=True)
    assert all(torch.equal(last[new].bfloat16(), exported[old]) for old, new in pairs)


def test_expert_tensors_have_the_published_names(finished: Workspace) -> None:
    names = set(load_file(finished.export / "model.safetensors"))
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in names
    assert "model.layers.0.block_sparse_moe.gate.weight" in names
    assert not any("gate_up_proj" in name for name in names)


def test_snapshots_start_at_the_initial_routers(finished: Workspace) -> None:
    expected = [finished.routers(step).name for step in sorted(snapshot_steps(6))]
    assert sorted(path.name for path in finished.routers(0).parent.iterdir()) == expected
    assert sorted(snapshot_steps(6)) == [0, 1, 2, 4, 6]
    first, last = load_file(finished.routers(0)), load_file(finished.routers(6))
    assert sorted(first) == [f"model.layers.{i}.mlp.gate.weight" for i in (0, 1)]
    assert all(not torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(
    stop_after: int, corpus: Path, finished: Workspace, tmp_path: Path
) -> None:
    recipe, space = load_recipe(TINY), Workspace(tmp_path)
    assert not run(recipe, corpus, space, stop_after=stop_after)
    space.checkpoint.with_name(space.checkpoint.name + ".unfinished").write_bytes(b"half a file")
    assert run(recipe, corpus, space)
    paths = ["checkpoint.safetensors", "export/model.safetensors", "export/tokenizer.json", "metrics.json"]
    paths += [f"routers/step_{step:06d}.safetensors" for step in snapshot_steps(recipe.steps)]
    for path in paths:
        assert (space.root / path).read_bytes() == (finished.root / path).read_bytes(), path
    assert _losses(space) == _losses(finished)


def _losses(space: Workspace) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in space.log.read_text().splitlines()]
    return [(entry["step"], entry["loss"]) for entry in entries]


def test_a_checkpoint_of_another_recipe_is_refused(corpus: Path, finished: Workspace) -> None:
    with pytest.raises(ValueError, match="another recipe"):
        run(load_recipe(TINY, lr=0.1), corpus, finished)


def test_training_lowers_the_loss_below_the_unigram_model(corpus: Path, tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    assert run(load_recipe(TINY, steps=60, valid_every=100, batch_size=8), corpus, space)
    overall = json.loads(space.metrics.read_text())["test"]["overall"]
    assert overall["perplexity"] < overall["unigram_perplexity"]


def test_span_corruption_keeps_every_token() -> None:
    recipe = load_recipe(TINY, model_type="switch_transformers", config=SWITCH)
    window = np.arange(1000, 1064)
    source, target = corrupt_spans(window, recipe, np.random.default_rng(0))
    noise = round(64 * recipe.noise_density)
    spans = round(noise / recipe.mean_span)
    assert len(source) == 64 - noise + spans + 1
    assert len(target) == noise + spans + 1
    pieces: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token < 1000:
            pieces[token] = []
        else:
            pieces[max(pieces)].append(token)
    restored = [t for token in source[:-1] for t in (pieces[token] if token < 1000 else [token])]
    assert restored == window.tolist()


def test_unknown_and_missing_keys_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown keys.*learning"):
        load_recipe(TINY, learning=1)
    values = json.loads(TINY.read_text())
    del values["seq_len"]
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"missing keys.*seq_len"):
        load_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.learning_rate(recipe.warmup_steps) == pytest.approx(recipe.lr)
    assert recipe.learning_rate(recipe.steps) == pytest.approx(recipe.min_lr)


def test_passages_are_even_deterministic_and_from_the_corpus(corpus: Path) -> None:
    text = make_calibration.sample_passages(corpus, ["prose", "code"], "train", total_bytes=3000, passage_chars=300)
    assert text == make_calibration.sample_passages(
        corpus, ["prose", "code"], "train", total_bytes=3000, passage_chars=300
    )
    assert len(text.encode()) <= 3000
    documents = {d: read_documents(corpus, d, "train") for d in ("prose", "code")}
    sizes = {"prose": 0, "code": 0}
    for passage in text.rstrip("\n").split(SEPARATOR):
        (domain,) = [d for d, texts in documents.items() if any(passage in document for document in texts)]
        sizes[domain] += len(passage)
    assert min(sizes.values()) > 0.7 * max(sizes.values())
