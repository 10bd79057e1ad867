"""Evaluation sets run on a model, alone and beside another."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.errors import InvalidTask
from moesaic.evaluate.intervals import paired_share_difference, share
from moesaic.evaluate.local_tasks import TaskOutcome, figures, run_task
from moesaic.evaluate.tasks import find_set, read_set
from moesaic.runtime.hf import open_any, open_tokenizer
from tests.evaluate.test_likelihood import naive
from tests.talking import make_tokenizer
from tests.tiny import build_tiny

SETS = Path(__file__).with_name("sets")
ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
PUBLIC = ROOT.parent / "shared" / "data" / "eval"


@pytest.mark.parametrize("kind", ["source", "packed", "switch"])
def test_the_answers_are_those_of_a_naive_computation(kind: str, request: pytest.FixtureRequest) -> None:
    """Packed or not, causal or encoder-decoder: each measure takes the option that one-token-at-a-time finds best."""
    folder, tokenizer = request.getfixturevalue(kind), make_tokenizer()
    packed = kind == "packed"
    model = moesaic.load(folder, dtype=torch.float32) if packed else open_any(folder).float()
    questions = read_set(SETS / "animals.jsonl")
    found = run_task(model, tokenizer, questions, longest=128)
    for number, item in enumerate(questions.items):
        best: dict[str, list[float]] = {"accuracy": [], "accuracy_per_byte": [], "accuracy_per_token": []}
        for context, text in zip(item.contexts, item.continuations, strict=True):
            context_tokens = tokenizer.encode(context) or [tokenizer.eos_token_id]
            tokens = tokenizer.encode(f" {text}")
            value = naive(model, tuple(context_tokens), tuple(tokens))[0]
            best["accuracy"].append(value)
            best["accuracy_per_byte"].append(value / len(text.encode()))
            best["accuracy_per_token"].append(value / len(tokens))
        for measure, values in best.items():
            chosen = found.chosen[measure][number]
            assert values[chosen] == pytest.approx(max(values), rel=1e-4)  # a tie within rounding may fall either way
    assert found.gold == [item.gold for item in questions.items]
    assert found.cut == 0


def test_last_words(source: Path) -> None:
    """A word counts when the model would say just it; its likelihood gives the perplexity of a word."""
    model, tokenizer = open_any(source).float(), make_tokenizer()
    questions = read_set(SETS / "last_words.jsonl")
    found = run_task(model, tokenizer, questions, longest=128)
    wanted = [
        naive(model, tuple(tokenizer.encode(item.contexts[0])), tuple(tokenizer.encode(f" {item.continuations[0]}")))
        for item in questions.items
    ]
    assert found.hits("accuracy") == [greedy for _, greedy in wanted]
    assert found.log_likelihoods == pytest.approx([value for value, _ in wanted], rel=1e-4)
    perplexity = figures(found)["word_perplexity"].value.value
    assert perplexity == pytest.approx(math.exp(-sum(value for value, _ in wanted) / 2), rel=1e-3)


def test_pronouns_have_one_measure(source: Path) -> None:
    """Sets with one continuation need no length."""
    found = run_task(open_any(source), make_tokenizer(), read_set(SETS / "pronouns.jsonl"), longest=128)
    assert list(found.chosen) == ["accuracy"]
    assert len(found.chosen["accuracy"]) == 3


def test_items_that_do_not_fit_are_counted(source: Path) -> None:
    """A model that reads twenty tokens sees the end of longer questions, and the outcome says of how many."""
    found = run_task(open_any(source), make_tokenizer(), read_set(SETS / "animals.jsonl"), longest=20)
    assert found.cut == 5  # all but the one without a query


def test_figures_of_one_model() -> None:
    """Alone a model has shares with intervals, and nothing to compare."""
    found = figures(TaskOutcome({"accuracy": [0, 1, 1]}, [0, 1, 0], [], 0))
    assert found["accuracy"].value == share([True, True, False])
    assert found["accuracy"].reference is found["accuracy"].difference is None
    assert list(found) == ["accuracy"]


def test_figures_of_two_models() -> None:
    """Beside another the difference is paired, and changed answers count also where both are wrong."""
    ours = TaskOutcome({"accuracy": [0, 1, 2, 0]}, [0, 1, 0, 1], [], 0)
    theirs = TaskOutcome({"accuracy": [0, 0, 1, 0]}, [0, 1, 0, 1], [], 0)
    found = figures(ours, theirs)
    assert found["accuracy"].difference == paired_share_difference([True, True, False, False], [True] + [False] * 3)
    assert found["accuracy"].reference == share([True, False, False, False])
    assert found["changed_answers"].value == share([False, True, True, False])


def test_improbable_words_have_a_perplexity() -> None:
    """A word that the model holds for impossible gives infinity, not an error."""
    found = figures(TaskOutcome({"accuracy": [-1]}, [0], [-1e4], 0))
    assert found["word_perplexity"].value.value == math.inf


def test_a_tokenizer_of_another_model() -> None:
    """Tokens that the model does not have are refused with the item's place."""
    small = build_tiny("mixtral", vocab_size=20)
    with pytest.raises(
        InvalidTask, match=r"animals\.jsonl, line 1: the tokenizer makes token \d+, but the model has 20"
    ):
        run_task(small, make_tokenizer(), read_set(SETS / "animals.jsonl"), longest=128)


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public evaluation sets are not in ../shared/data/eval")
@pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="models/demo is not here")
def test_a_public_set_on_the_demo(tmp_path: Path) -> None:
    """The demo, packed at 8 bits, answers a public set nearly as the original does."""
    packed = moesaic.compress(DEMO, tmp_path / "out", moesaic.CompressOptions(bits=8, other_bits=8))
    questions = read_set(find_set("copa", PUBLIC), limit=40)
    tokenizer = open_tokenizer(DEMO)
    ours, theirs = (run_task(open_any(folder), tokenizer, questions, longest=256) for folder in (packed, DEMO))
    assert figures(ours, theirs)["changed_answers"].value.value <= 0.1
