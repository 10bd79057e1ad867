"""Reading what a report is made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moesaic.errors import CorruptFile, NotACheckpoint, UsageError
from moesaic.report.sources import read, read_statistics
from tests.report.made_up import LAYERS, manifest, record, write_folder, write_statistics


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    """Making a page does not wait for torch or transformers, not even indirectly."""
    folder = write_folder(tmp_path / "one", manifest())
    code = (
        "import sys; from pathlib import Path\n"
        "from moesaic.report.sources import read; from moesaic.report.page import build\n"
        f"build(read([Path({str(folder)!r})]))\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_records_inside_the_folder_and_beside_it(tmp_path: Path) -> None:
    """Records in the folder and records given as a file come together; a later one replaces an earlier one."""
    folder = write_folder(tmp_path / "one", manifest(), [record("kl", 0.5), record("perplexity", 9, interval=[8, 11])])
    beside = tmp_path / "more.json"
    beside.write_text(json.dumps([record("kl", 0.25), record("kl", 0.75, window=32)]))
    run = read([folder], [beside]).runs[0]
    assert sorted(each.value for each in run.named("kl")) == [0.25, 0.75]
    assert [(each.low, each.high) for each in run.named("perplexity")] == [(8, 11)]


def test_records_of_another_model_are_a_run_of_their_own(tmp_path: Path) -> None:
    """The full-precision model has no packed folder, but its figures belong on the page."""
    folder = write_folder(tmp_path / "one", manifest())
    beside = tmp_path / "full.json"
    beside.write_text(json.dumps([record("perplexity", 5, model="full")]))
    runs = read([folder], [beside]).runs
    assert [(run.label, bool(run.manifest)) for run in runs] == [("one", True), ("full", False)]


def test_folders_of_one_name(tmp_path: Path) -> None:
    """Folders of one name get labels that differ, and records that fit both are refused."""
    folders = [write_folder(tmp_path / each / "one", manifest()) for each in ("a", "b")]
    assert [run.label for run in read(folders).runs] == ["a/one", "b/one"]
    assert len({run.label for run in read([folders[0]] * 3).runs}) == 3
    beside = tmp_path / "more.json"
    beside.write_text(json.dumps([record("kl", 0.25)]))
    with pytest.raises(UsageError, match="'one'"):
        read(folders, [beside])


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    """NaN is no measurement."""
    folder = write_folder(tmp_path / "one", manifest(), [record("kl", float("nan")), record("perplexity", 5)])
    assert [each.name for each in read([folder]).runs[0].measurements] == ["perplexity"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not valid JSON"), ('{"format": "x"}', "'x'"), ('[{"name": "kl"}]', "record 0"), ("3", "None"),
     ('{"format": "moesaic-records/1"}', "records"), ('{"format": "moesaic-costs/1"}', "costs")],
)  # fmt: skip
def test_files_that_are_none_of_these(tmp_path: Path, content: str, words: str) -> None:
    """A file that cannot be used is named, with what is wrong with it."""
    folder = write_folder(tmp_path / "one", manifest())
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    with pytest.raises(CorruptFile, match=words) as caught:
        read([folder], [bad])
    assert "bad.json" in str(caught.value)


def test_folders_that_are_none(tmp_path: Path) -> None:
    """No folder, one without a manifest, one of another format or with a plan that contradicts itself are refused."""
    with pytest.raises(UsageError):
        read([])
    with pytest.raises(NotACheckpoint, match="--records"):
        read([tmp_path])
    for name, change in (("new", {"format_version": 9}), ("odd", {"plan": {"format": "moesaic-plan/1", "layers": 3}})):
        with pytest.raises(CorruptFile, match=name):
            read([write_folder(tmp_path / name, manifest(**change))])


def test_statistics(tmp_path: Path) -> None:
    """Statistics are read as they were written."""
    moments = {layer: np.ones((4, 3)) for layer in LAYERS}
    path = write_statistics(
        tmp_path / "s.safetensors", {layer: [1, 2, 3, 4] for layer in LAYERS}, gate_up_moment=moments
    )
    found = read_statistics(path)
    assert found.tokens[LAYERS[0]] == 1000
    assert found.arrays[LAYERS[1]]["count"].tolist() == [1, 2, 3, 4]
    assert found.bits == (2, 3)


@pytest.mark.parametrize("change", ["shape", "nan", "format", "bytes"])
def test_damaged_statistics(tmp_path: Path, change: str) -> None:
    """Statistics whose parts do not fit are refused with the file's name."""
    bad = np.full((4, 3), np.nan) if change == "nan" else np.ones((3, 3)) if change == "shape" else np.ones((4, 3))
    path = write_statistics(tmp_path / "s.safetensors", {LAYERS[0]: [1] * 4}, gate_up_moment={LAYERS[0]: bad})
    if change == "bytes":
        path.write_bytes(path.read_bytes()[:40])
    elif change == "format":
        path.write_bytes(path.read_bytes().replace(b"moesaic-stats/1", b"moesaic-stats/9"))
    with pytest.raises(CorruptFile, match=r"s\.safetensors"):
        read_statistics(path)
