"""`moesaic report`, on folders that the program made."""

from __future__ import annotations

import json
from pathlib import Path

from moesaic import CompressOptions, compress
from tests.processes import call_cli


def test_a_page_of_real_runs(mixtral: Path, text: Path, tmp_path: Path) -> None:
    """Compress, evaluate into the folder, report: the page has the figures, the folder is still what it was."""
    for name, allocator in (("mixed", None), ("uniform", "uniform")):
        compress(mixtral, tmp_path / name, CompressOptions(bits=2, allocator=allocator))
    out, records = tmp_path / "report.html", tmp_path / "mixed" / "records.json"
    words = ("--against", mixtral, "--text", text, "--window", "32", "--no-speed", "--save", records, "--quiet")
    first, second = (call_cli("evaluate", tmp_path / "mixed", *words, "--json") for _ in range(2))
    assert first.code == 0, first.err
    assert json.loads(first.out)["total_bytes"] == json.loads(second.out)["total_bytes"]
    assert call_cli("verify", tmp_path / "mixed", "--quiet").code == 0
    figures = tmp_path / "figures"
    found = json.loads(
        call_cli("report", tmp_path / "mixed", tmp_path / "uniform", "-o", out, "--figures", figures, "--json").out
    )
    assert found["runs"] == ["mixed", "uniform"]
    assert found["bytes"] == out.stat().st_size
    assert sorted(found["figures"]) == sorted(path.name for path in figures.iterdir())
    assert {"map-mixed.svg", "map-uniform.svg", "size-kl.svg", "router-norm-max-var-uniform.svg"} <= set(
        found["figures"]
    )
    assert [each for each in found["missing"] if "KL" in each["title"]] == []
    assert "KL divergence" in out.read_text(encoding="utf-8")


def test_for_people(packed: Path, tmp_path: Path) -> None:
    """The output names the page, and what was not measured with the command for it."""
    done = call_cli("report", packed, "-o", tmp_path / "report.html")
    assert done.out.startswith(f"{tmp_path / 'report.html'}: 1 runs, ")
    assert "not measured: Size against KL divergence; try: moesaic evaluate" in done.out


def test_wrong_calls(mixtral: Path, packed: Path, tmp_path: Path) -> None:
    """A folder that is not packed, a file that is no record and a folder that is not there give one line each."""
    for words, code, said in (
        ((mixtral, "-o", tmp_path / "r.html"), 1, "no moesaic.json"),
        ((packed, "-o", tmp_path / "r.html", "--records", packed / "config.json"), 1, "config.json"),
        ((packed, "-o", tmp_path / "no" / "r.html"), 2, "make it first"),
    ):
        done = call_cli("report", *words)
        assert (done.code, done.err.count("\n")) == (code, 1)
        assert said in done.err
        assert not (tmp_path / "r.html").exists()
