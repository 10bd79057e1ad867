"""Several held-out texts at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from moesaic import load
from moesaic.errors import InvalidText
from moesaic.evaluate.run import EvaluateOptions, evaluate, records
from moesaic.evaluate.texts import read_texts
from moesaic.packing.manifest import read_manifest
from moesaic.packing.pruning import write_pruning
from moesaic.prune import Pruning, Threshold
from moesaic.runtime.skipping import expert_modules
from tests.talking import write_text

OPTIONS = EvaluateOptions(window=32, max_tokens=128, speed=False)


@pytest.fixture
def pruned(packed: Path, tmp_path: Path) -> Path:
    """A packed folder with a ratio rule."""
    folder = Path(shutil.copytree(packed, tmp_path / "pruned"))
    layers = {name: {"threshold": torch.tensor(0.95)} for name in expert_modules(load(folder))}
    write_pruning(folder, Pruning("threshold", Threshold(), 2, 0.75, 0.75, layers), read_manifest(folder))
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """Two texts, one of other characters than the other."""
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("3.14159 + 2.71828 = 5.85987; " * 12)
    return [write_text(tmp_path / "prose.txt", 300), numbers]


def test_each_text_has_its_own_figures(pruned: Path, source: Path, texts: list[Path]) -> None:
    """Quality and shares of a text among others are those that it has alone, by layer too."""
    found = evaluate(pruned, texts, reference=source, options=OPTIONS)
    assert found["text"] == "prose.txt+numbers.txt"
    for path, part in zip(texts, found["texts"], strict=True):
        alone = evaluate(pruned, path, reference=source, options=OPTIONS)
        assert alone["texts"] == []
        assert part.pop("text") == path.name
        assert part == {key: alone[key] for key in part}
    shares = [part["expert_share"] for part in found["texts"]]
    assert shares[0] != shares[1]


def test_the_whole_is_the_mean_over_all_tokens(pruned: Path, source: Path, texts: list[Path]) -> None:
    """Figures of all texts together weigh each by its tokens."""
    found = evaluate(pruned, texts, reference=source, options=OPTIONS)
    parts = found["texts"]
    tokens = [part["tokens"] for part in parts]
    assert found["tokens"] == sum(tokens)
    wanted = sum(part["kl"] * n for part, n in zip(parts, tokens, strict=True)) / sum(tokens)
    assert found["kl"] == pytest.approx(wanted)
    assert min(p["expert_share"] for p in parts) < found["expert_share"] < max(p["expert_share"] for p in parts)
    for layer, share in found["expert_share_layers"].items():
        each = [part["expert_share_layers"][layer] for part in parts]
        assert min(each) <= share <= max(each)


def test_records_say_which_text(pruned: Path, texts: list[Path]) -> None:
    """Every text has records of quality and shares, by layer too; sizes are recorded once, the whole at the end."""
    made = records(evaluate(pruned, texts, options=OPTIONS))
    of = {name: [r for r in made if r.name == name] for name in ("perplexity", "expert_share", "layer_expert_share")}
    names = ["prose.txt", "numbers.txt", "prose.txt+numbers.txt"]
    assert [r.conditions["text"] for r in of["perplexity"]] == names
    assert [r.conditions["text"] for r in of["expert_share"]] == names
    assert [r.conditions["text"] for r in of["layer_expert_share"]] == [name for name in names for _ in range(2)]
    assert sum(r.name == "code_bits" for r in made) == 1


def test_without_a_policy_there_are_no_shares(packed: Path, texts: list[Path]) -> None:
    """Shares are empty and the rest is there."""
    found = evaluate(packed, texts, options=OPTIONS)
    assert [part["expert_share"] for part in found["texts"]] == [None, None]
    assert all(part["perplexity"] > 1 for part in found["texts"])


def test_texts_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two files with the same name keep their paths."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_text(tmp_path / name / "text.txt")
    found = read_texts([tmp_path / name / "text.txt" for name in ("one", "two")])
    assert [each.name for each in found] == [str(tmp_path / name / "text.txt") for name in ("one", "two")]


def test_a_text_that_is_not_there_is_an_error(texts: list[Path], tmp_path: Path) -> None:
    """One missing file of several is named before anything is measured."""
    with pytest.raises(InvalidText, match="nowhere"):
        read_texts([*texts, tmp_path / "nowhere.txt"])
