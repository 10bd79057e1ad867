"""Tasks of lm-eval: our road to it, and what both measure of the same set, which is the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.errors import InvalidTask, UnknownName, UsageError
from moesaic.evaluate import harness
from moesaic.evaluate.harness import HarnessTask, harness_figures, require_lm_eval, run_lm_eval
from moesaic.evaluate.intervals import paired_share_difference, share
from moesaic.evaluate.local_tasks import run_task
from moesaic.evaluate.quality import Mean
from moesaic.evaluate.tasks import read_set
from tests.talking import make_tokenizer

SETS = Path(__file__).with_name("sets")
YAML = """
task: animals
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query.strip()}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: " "
metric_list: [{{metric: acc}}, {{metric: acc_bytes}}]
metadata: {{version: 3.0}}
"""
with_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the definition of a task whose data are local, without the item that has no query."""
    folder = tmp_path_factory.mktemp("definitions")
    lines = (SETS / "animals.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["query"]]
    (folder / "animals.jsonl").write_text("\n".join(kept), encoding="utf-8")
    (folder / "animals.yaml").write_text(YAML.format(data=folder / "animals.jsonl"))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and no files in the user's cache."""
    if importlib.util.find_spec("datasets") is not None:
        import datasets  # noqa: PLC0415

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@with_lm_eval
def test_a_local_task_gives_what_our_own_reader_gives(
    packed: Path, definitions: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """lm-eval and our own code read the same file with a packed model and choose the same, item by item, in silence."""
    model, tokenizer = moesaic.load(packed, dtype=torch.float32), make_tokenizer()
    (found,) = run_lm_eval(model, tokenizer, ("animals",), longest=128, include=definitions)
    ours = run_task(model, tokenizer, read_set(definitions / "animals.jsonl"), longest=128)
    assert (found.task, found.version, found.items) == ("animals", "3.0", 5)
    for metric, measure in (("acc", "accuracy"), ("acc_bytes", "accuracy_per_byte")):
        hits = ours.hits(measure)
        assert found.samples[metric] == [float(hit) for hit in hits]
        assert found.metrics[metric] == share(hits)
    assert capfd.readouterr().out == ""


@with_lm_eval
def test_the_limit(packed: Path, definitions: Path) -> None:
    """Only the first documents are asked."""
    (found,) = run_lm_eval(
        moesaic.load(packed), make_tokenizer(), ("animals",), longest=128, include=definitions, limit=2
    )
    assert found.items == len(found.samples["acc"]) == 2


@with_lm_eval
def test_unknown_tasks(packed: Path, definitions: Path) -> None:
    """A name that lm-eval does not know has its nearest neighbour named."""
    with pytest.raises(UnknownName, match="did you mean 'animals'"):
        run_lm_eval(moesaic.load(packed), make_tokenizer(), ("animal_s",), longest=128, include=definitions)


@with_lm_eval
def test_data_that_are_not_there(packed: Path, tmp_path: Path) -> None:
    """A task whose data cannot be had is one line, not a traceback of another program."""
    (tmp_path / "animals.yaml").write_text(YAML.format(data=tmp_path / "nowhere.jsonl"))
    with pytest.raises(InvalidTask, match=r"--lm-eval animals: lm-eval failed: .*nowhere"):
        run_lm_eval(moesaic.load(packed), make_tokenizer(), ("animals",), longest=128, include=tmp_path)


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lm-eval is not installed, the message has the command that installs it."""
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'moesaic\[lm-eval\]'"):
        require_lm_eval()


def made(values: list[float], mean: float | None = None) -> HarnessTask:
    """A task with one metric."""
    value = sum(values) / len(values) if mean is None else mean
    return HarnessTask("x", "1", len(values), {"acc": Mean(value, value, value)}, {"acc": values})


def test_differences_are_paired() -> None:
    """Shares get the paired interval of shares, other means that of means, and what is no mean gets none."""
    ours, theirs = [1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]
    found = harness_figures(made(ours), made(theirs))["acc"]
    assert found.reference == Mean(0.25, 0.25, 0.25)
    assert found.difference == paired_share_difference([True, True, False, True], [True, False, False, False])
    assert harness_figures(made([0.5, 1.5]), made([0.5, 0.5]))["acc"].difference.value == pytest.approx(0.5)
    assert harness_figures(made(ours, mean=7.0), made(theirs))["acc"].difference is None
    assert harness_figures(made(ours))["acc"].difference is None
