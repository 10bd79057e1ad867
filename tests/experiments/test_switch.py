"""The Switch Transformer experiment at toy size: real training, real measuring, and the directions of its rules."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.switch.__main__ import carry_out
from experiments.switch.correlations import spearman
from experiments.switch.figures import draw
from experiments.switch.measure import Lines, Measured
from experiments.switch.models import TEST_SEED, Run, item_losses, open_finetuned, open_pretrained
from experiments.switch.observe import expert_layers, observe
from experiments.switch.quantizers import Rounded, RowHQQ, stored_bits
from experiments.switch.record import METRICS
from experiments.switch.report import markdown
from experiments.switch.rules import BASES, RANDOM, UNIFORM, allocations, rules
from experiments.switch.settings import QUICK, Settings, Table
from experiments.switch.task import (
    SENTINEL,
    Item,
    TaskOrder,
    baselines,
    encode,
    held_out_pairs,
    make_batch,
    phrase,
    rouge2,
    sentences,
)
from experiments.train_moe.data import SEPARATOR
from experiments.train_moe.model import compute_losses, router_names
from experiments.train_moe.train import snapshot_steps
from safetensors.torch import load_file
from scipy.stats import spearmanr

CONFIG = {**QUICK.pretraining["config"], "d_model": 16, "d_ff": 32, "d_kv": 8, "num_experts": 8}
TOY = dataclasses.replace(
    QUICK,
    pretraining={**QUICK.pretraining, "config": CONFIG, "vocab_size": 384, "batch_size": 4, "steps": 8},
    finetuning={**QUICK.finetuning, "steps": 8, "valid_windows": 8},
    finetuned=1,
    random_plans=1,
    draws=20,
    generated=4,
    scored=24,
    counted=64,
    new_tokens=8,
    tables={"HQQ": Table("hqq", (2, 3), (2.0, 2.5, 3.0)), "GPTQ": Table("gptq", (2, 3), (2.0, 2.5, 3.0))},
)


HALF = Table("hqq", (2, 3), (2.5,))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up sentences of one domain."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for split, documents in (("train", 30), ("valid", 6), ("test", 6)):
        texts = [" ".join(_sentence(rng) for _ in range(12)) for _ in range(documents)]
        (folder / f"text.{split}.txt").write_text(SEPARATOR.join(texts), encoding="utf-8")
    return folder


def _sentence(rng: random.Random) -> str:
    words = "the a cat dog bird sees hears likes small large old and then".split()  # noqa: SIM905
    return " ".join(rng.choices(words, k=rng.randint(6, 9))).capitalize() + "."


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict]:
    """A whole run at toy size, with its record."""
    work = tmp_path_factory.mktemp("work")
    return Run(TOY, corpus, work), carry_out(TOY, corpus, work)


def opened(run: Run, seed: int = 1) -> Measured:
    return Measured(run, seed, Lines(run.root / f"measured_{seed}.jsonl"))


def test_the_record_has_every_rule_at_every_width(finished: tuple[Run, dict]) -> None:
    """Uniform stands where an average is a width, all rules where it is not, and all with the same stored bits."""
    _, record = finished
    for title in TOY.tables:
        rows = [row for row in record["table"] if row["table"] == title]
        assert {row["bits"] for row in rows if row["rule"] == UNIFORM} == {2.0, 3.0}
        mixed = [row for row in rows if row["bits"] == 2.5]
        assert {*BASES, RANDOM} < {row["rule"] for row in mixed}
        assert len({row["stored"] for row in mixed}) == 1
        for row in mixed:
            assert all(set(row["over_random"][metric]) == {"items", "seeds"} for metric in METRICS)
    assert len(record["models"]["finetuned"]) == TOY.finetuned
    assert "| uniform |" in markdown(record)


def test_the_quick_form_shows_what_is_safe(tmp_path: Path) -> None:
    """Pretraining learns more than word counts, fine-tuning learns the task, and one bit costs more than three."""
    command = [sys.executable, "-m", "experiments.switch", "--quick", "--work", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    valid = record["models"]["pretraining"]["valid"]["overall"]
    assert valid["loss"] < valid["unigram_loss"]
    for model in record["models"]["finetuned"]:
        assert model["valid_loss"] < 0.7 * model["valid_loss_before"]
    uniform = {row["bits"]: row["loss"]["items"]["mean"] for row in record["table"] if row["rule"] == UNIFORM}
    assert uniform[3.0] < uniform[1.0]


def test_a_finished_run_is_not_measured_again(finished: tuple[Run, dict]) -> None:
    """The same command gives the same record from what is kept; a torn last line is measured anew."""
    run, record = finished
    path = run.root / "measured_1.jsonl"
    before = path.read_text()
    path.write_text(before + '{"key": "torn')
    trained = run.finetuned(1).checkpoint.stat().st_mtime_ns
    assert json.dumps(carry_out(TOY, run.corpus, run.root)) == json.dumps(record)
    assert path.read_text() == before
    assert run.finetuned(1).checkpoint.stat().st_mtime_ns == trained


def test_fine_tuning_starts_from_the_pretrained_routers(finished: tuple[Run, dict]) -> None:
    """The initial routers of an export are the pretrained ones, and the fine-tuned ones differ from them."""
    run, _ = finished
    pretrained, finetuned = open_pretrained(run).state_dict(), open_finetuned(run, 1).state_dict()
    initial = load_file(run.finetuned(1).export / "initial_routers.safetensors")
    assert sorted(initial) == sorted(router_names(open_pretrained(run)))
    for name, router in initial.items():
        assert torch.equal(router, pretrained[name])
        assert not torch.equal(router, finetuned[name])
    kept = sorted(path.stem for path in run.pretrained.routers(0).parent.iterdir())
    assert kept == [f"step_{step:06d}" for step in sorted(snapshot_steps(8))]


def test_gradients_reach_every_router(finished: tuple[Run, dict]) -> None:
    """Small initial routers keep the softmax open: the language loss alone moves them in every layer."""
    run, _ = finished
    model = open_pretrained(run)
    model.config.router_aux_loss_coef = model.config.router_z_loss_coef = 0.0
    compute_losses(model, TaskOrder(run.items("train"), run.tokenizer, TOY.finetune(1)).batch(0)).total.backward()
    gradients = dict(model.named_parameters())
    assert all(float(gradients[name].grad.norm()) > 0 for name in router_names(model))


def test_rules_rank_in_the_stated_direction(finished: tuple[Run, dict]) -> None:
    """High bits go to frequent experts, to rare ones when reversed, and to those with a small change of the norm."""
    run, _ = finished
    each = opened(run)
    plans = {line.rule: line.plan for line in allocations(each.weights, each.scores, HALF)}
    initial = load_file(run.finetuned(1).export / "initial_routers.safetensors")
    final = open_finetuned(run, 1).state_dict()
    for layer, stats in each.observed[0].layers.items():
        name = layer.removesuffix("experts") + "router.classifier.weight"
        change = (final[name].double().norm(dim=1) - initial[name].double().norm(dim=1)).numpy()
        for rule, small_first in (
            ("router-norm change", change),
            ("router-norm change, reversed", -change),
            ("activation frequency", -stats.count.numpy()),
            ("activation frequency, reversed", stats.count.numpy()),
        ):
            widths = np.asarray(plans[rule][layer])
            assert (widths == 3).sum() == len(widths) // 2
            assert small_first[widths == 3].max() <= small_first[widths == 2].min()


def test_max_var_lifts_an_expert_with_a_wide_row(finished: tuple[Run, dict]) -> None:
    """An expert whose MaxVar is far above the others' gets high bits from every reordered rule."""
    run, _ = finished
    each = opened(run)
    plain = each.scores["router-norm change"].layers
    layer = next(iter(plain))
    last = int(np.argmin(plain[layer]))
    read = type(each.weights).first_layer

    class Wide(type(each.weights)):
        def first_layer(self, name: str, expert: int) -> torch.Tensor:
            return read(self, name, expert) * (10.0 if (name, expert) == (layer, last) else 1.0)

    wide = Wide(**{field.name: getattr(each.weights, field.name) for field in dataclasses.fields(each.weights)})
    scores = {name: rule(wide) for name, rule in rules(0).items()}
    plans = {line.rule: line.plan for line in allocations(wide, scores, HALF)}
    assert plans["router-norm change"][layer][last] == 2
    assert plans["router-norm change + MaxVar"][layer][last] == 3


def test_counts_leave_padding_out_and_nothing_is_dropped(finished: tuple[Run, dict]) -> None:
    """Every layer of a stack sees the real tokens of the sentences, and a full expert is refused."""
    run, _ = finished
    model, items = open_finetuned(run, 1), run.test[:5]
    seen = observe(model, run.tokenizer, items)
    targets = [pair.target for pair in held_out_pairs(items, TEST_SEED + 1)]
    tokens = sum(len(row) for row in encode(run.tokenizer, targets))
    decoder = [len(each.expert) for name, each in seen.items() if name.startswith("decoder")]
    assert decoder == [tokens] * len(decoder)
    assert len(seen) == len(expert_layers(model)) == 2
    for module in expert_layers(model):
        model.get_submodule(module.removesuffix(".experts")).router.expert_capacity = 1
    with pytest.raises(RuntimeError, match="capacity"):
        observe(model, run.tokenizer, items)


def test_padding_does_not_change_a_loss(finished: tuple[Run, dict]) -> None:
    """A sentence has the same loss alone and beside longer ones."""
    run, _ = finished
    model, tokenizer = open_finetuned(run, 1), run.tokenizer
    together = item_losses(model, tokenizer, run.test[:6])
    assert together[0] == pytest.approx(item_losses(model, tokenizer, run.test[:1])[0], abs=1e-5)


def test_roundings_can_be_undone(finished: tuple[Run, dict]) -> None:
    """Width 0 gives back the full-precision experts, and a smaller width rounds more coarsely."""
    run, _ = finished
    each = opened(run)
    original = open_finetuned(run, 1).state_dict()
    for quantizer in ("hqq", "gptq"):
        rounded = Rounded(open_finetuned(run, 1), quantizer, each.observed[1])
        errors = {}
        for width in (2, 3, 0):
            state = rounded.apply(rounded.plan(width)).state_dict()
            errors[width] = sum(float((state[name] - original[name]).square().sum()) for name in original)
        assert errors[2] > errors[3] > errors[0] == 0


def test_hqq_has_one_grid_a_row_at_any_length() -> None:
    """A row of 256 columns has 4 values at 2 bits, and the formula counts 32 bits a row beside the codes."""
    weight = torch.randn(3, 256)
    assert all(len(row.unique()) <= 4 for row in RowHQQ()(weight, 2).dequantize())


def test_stored_bits_follow_the_formula(finished: tuple[Run, dict]) -> None:
    """2 bits and 32 a row of 16 or 32 columns."""
    model = open_finetuned(finished[0], 1)
    plan = {name: [2] * 8 for name in expert_layers(model)}
    assert stored_bits(model, "hqq", plan) == pytest.approx(2 + (32 / 16 + 32 / 32) / 2)


def test_sentences_are_whole_and_come_once() -> None:
    """Headings, fragments and sentences of other lengths stay out."""
    text = "The cat sees the old dog. The cat sees the old dog.\n\nA heading\n\nToo short. x = f(y) is none."
    assert [item.text for item in sentences([text], "text", 4, 8)] == ["The cat sees the old dog."]


def test_pairs_hold_the_sentence_and_are_the_same_every_time() -> None:
    """Whatever is measured the held-out gaps are the same; source and missing words make up the output."""
    items = [
        Item("german", tuple(["Eins", "zwei", "drei", "vier", "fünf."])),
        Item("text", tuple(["One", "two", "three."])),
    ]
    pairs = held_out_pairs(items, 3)
    assert pairs == held_out_pairs(items, 3)
    for item, pair in zip(items, pairs, strict=True):
        named, missing = pair.target.split(": ")
        assert named == phrase(item.domain)
        assert pair.source.replace(SENTINEL, missing) == item.text
    targets = [pair.target for pair in pairs]
    assert rouge2(targets, targets) == [100.0, 100.0]
    assert rouge2(targets[1:], ["this text file: two one three"]) == [pytest.approx(40.0)]


def test_baselines_name_the_source_by_its_words() -> None:
    """Word counts find the source that a constant output misses; copying the input finds nothing."""
    known = [Item("german", tuple(f"Das ist ein Satz {n}.".split())) for n in range(3)]
    known += [Item("dict", tuple(f"This is one entry {n}.".split())) for n in range(5)]
    found = baselines(known[:3], known, 0)
    assert found["word_counts"] > found["constant"]
    assert found["copy_input"] == 0


def test_batches_mark_padding() -> None:
    """Padding is masked in the input and ignored in the labels."""
    batch = make_batch([[5, 6, 0], [7, 0]], [[8, 0], [9, 9, 0]], pad=1)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[8, 0, -100], [9, 9, 0]]


def test_rank_correlation_is_that_of_scipy() -> None:
    """With ties too."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(5, size=20), rng.normal(size=20)
    assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic))


def test_figures_come_from_the_record(finished: tuple[Run, dict], tmp_path: Path) -> None:
    """The same record gives the same bytes."""
    for folder in ("one", "two"):
        draw(finished[1], tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [f"switch_{name}.svg" for name in ("against_random", "correlations", "experts", "table")]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_the_full_settings_are_consistent() -> None:
    """The recipe and its fine-tuning form can be read, and differ in the seed."""
    settings = Settings(finetuning={"steps": 5})
    assert settings.pretrain.seq2seq
    assert [settings.finetune(seed).seed for seed in (1, 2)] == [1, 2]
