"""`moesaic evaluate`: its table, its JSON, its records."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.processes import run_cli, start_cli

PROMISED = {
    "perplexity",
    "perplexity_reference",
    "kl",
    "top1_agreement",
    "code_bits",
    "stored_bpw",
    "expert_bytes",
    "total_bytes",
    "tokens",
}


def test_json_is_one_object_with_everything(mixtral: Path, packed: Path, text: Path, tmp_path: Path) -> None:
    """--json prints exactly one object with the promised keys, speed included; --save writes the records."""
    save = tmp_path / "records.json"
    command = ("evaluate", packed, "--against", mixtral, "--text", text, "--window", 64, "--stride", 32)
    result = run_cli(*command, "--new-tokens", 4, "--json", "--save", save)
    assert result.err == ""
    assert result.out.count("\n") == 1
    found = json.loads(result.out)
    assert set(found) >= PROMISED
    assert all(isinstance(found[key], int | float) for key in PROMISED)
    assert found["decode_tokens_per_second"] > 0
    assert found["peak_memory_bytes"] > found["resident_before_bytes"] > 0
    assert found["backend"] == found["conditions"]["backend"]
    assert found["code_bits"] == 2.5

    saved = json.loads(save.read_text())
    assert saved["format"] == "moesaic-records/1"
    by_name = {record["name"]: record for record in saved["records"]}
    assert by_name["kl"]["value"] == found["kl"]
    assert by_name["decode_tokens_per_second"]["unit"] == "tokens/s"
    assert by_name["perplexity"]["n"] == found["tokens"]
    assert by_name["perplexity"]["interval"] == found["perplexity_interval"]
    assert by_name["routing_same_set"]["value"] == found["routing_same_set"]


def test_the_table(mixtral: Path, packed: Path, text: Path) -> None:
    """The table for people has the figures and says on what they were measured; no bar goes into a file."""
    result = run_cli("evaluate", packed, "--against", mixtral, "--text", text, "--no-speed", "--max-tokens", 200)
    assert result.code == 0
    assert result.err == ""
    for words in (
        "perplexity",
        "full precision",
        "KL divergence",
        "top-1 agreement",
        "same experts",
        "stored bits",
        "whole folder",
    ):
        assert words in result.out
    assert "window 128, stride 128" in " ".join(result.out.split())
    assert "tokens of prose.txt" in " ".join(result.out.split())


def test_tasks(mixtral: Path, packed: Path, tmp_path: Path) -> None:
    """--tasks prints a table of its own, and its figures are in the JSON and in the records."""
    sets = Path(__file__).parents[1] / "evaluate" / "sets"
    files = f"{sets / 'animals.jsonl'},{sets / 'last_words.jsonl'}"
    command = ("evaluate", packed, "--against", mixtral, "--tasks", files, "--task-limit", 4, "--no-speed")
    table = run_cli(*command)
    assert (table.code, table.err) == (0, "")
    for words in ("animals", "accuracy per byte", "word perplexity", "changed answers", "4 items", "2 items"):
        assert words in table.out
    assert "perplexity" not in table.out.split("tasks")[0]
    found = json.loads(run_cli(*command, "--json", "--records", tmp_path / "records.json").out)
    assert found["tasks"][0]["figures"]["accuracy"]["difference"] is not None
    names = {record["name"] for record in json.loads((tmp_path / "records.json").read_text())["records"]}
    assert {"task_accuracy", "task_accuracy_difference", "task_word_perplexity", "expert_bytes"} <= names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --text, --tasks or --lm-eval"),
        (("--tasks", "arc_easy"), "--task-folder"),
        (("--tasks", "a.jsonl,,b.jsonl"), "a name is empty"),
        (("--lm-eval", "x", "--lm-eval-include", "nowhere"), "no such folder"),
    ],
)
def test_wrong_calls(arguments: tuple[str, ...], words: str, packed: Path) -> None:
    """What cannot be measured is said in one line, with exit code 2."""
    result = run_cli("evaluate", packed, *arguments)
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1


def test_a_broken_set(packed: Path, tmp_path: Path) -> None:
    """A line that is not of the format is named with its file and number, with exit code 1."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "q", "choices": ["a", "b"], "gold": 5}')
    result = run_cli("evaluate", packed, "--tasks", bad)
    assert result.code == 1
    assert result.err == f"error: {bad}, line 1: 'gold' is 5, but there are options 0 to 1\n"


def test_without_a_reference(packed: Path, text: Path) -> None:
    """Without --against the comparisons are null in JSON and absent from the table."""
    command = ("evaluate", packed, "--text", text, "--no-speed", "--max-tokens", 100)
    found = json.loads(run_cli(*command, "--json").out)
    assert set(found) >= PROMISED
    assert found["kl"] is found["perplexity_reference"] is found["decode_tokens_per_second"] is None
    assert "KL" not in run_cli(*command).out


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads: int, packed: Path, text: Path) -> None:
    """--threads is used and recorded."""
    command = ("evaluate", packed, "--text", text, "--no-speed", "--max-tokens", 50, "--json", "--threads", threads)
    assert json.loads(run_cli(*command).out)["conditions"]["threads"] == threads


def test_interrupted(packed: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a measurement with exit code 130 and without a traceback."""
    text = tmp_path / "long.txt"
    text.write_text("A long text. " * 20_000)
    process = start_cli("evaluate", packed, "--text", text, "--window", 32, "--stride", 1, "--no-speed")
    time.sleep(1.5)
    assert process.alive
    process.send(signal.SIGINT)
    result = process.finish()
    assert result.code == 130
    assert "Traceback" not in result.err
