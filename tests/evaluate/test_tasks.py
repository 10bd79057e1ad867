"""Files of evaluation sets: the three forms, and what is said of lines that have none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import InvalidTask, UnknownName, UsageError
from moesaic.evaluate.tasks import CHOICE, LAST_WORD, TASKS, find_set, read_set

SETS = Path(__file__).with_name("sets")
PUBLIC = Path(__file__).parents[3] / "shared" / "data" / "eval"
GOOD = {"query": "q", "choices": ["a", "b"], "gold": 1}


def write(path: Path, *rows: Any) -> Path:
    """A JSONL file; a row that is bytes goes in as it is."""
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def test_choices() -> None:
    """A query is repeated for each choice, without the white space at its end; the name is the file's."""
    found = read_set(SETS / "animals.jsonl")
    assert (found.name, found.file, found.kind, found.one_continuation) == ("animals", "animals.jsonl", CHOICE, False)
    assert len(found.items) == 6
    assert found.items[4].contexts == ("Question: What did the cat watch?",) * 2
    assert found.items[4].continuations[1] == "carts"
    assert [item.gold for item in found.items] == [0, 1, 0, 0, 1, 1]


def test_context_options() -> None:
    """The continuation is repeated for each context."""
    found = read_set(SETS / "pronouns.jsonl")
    assert (found.kind, found.one_continuation) == (CHOICE, True)
    assert found.items[0].contexts[1].endswith("because the gate")
    assert found.items[0].continuations == ("was too wide.",) * 2


def test_last_words() -> None:
    """A context and its last word make an item with one option."""
    found = read_set(SETS / "last_words.jsonl")
    assert found.kind == LAST_WORD
    assert found.items[1].continuations == ("day",)


def test_a_known_name_brings_its_cue(tmp_path: Path) -> None:
    """Sets of questions are asked with `Answer:`, sets to be continued without; the name ends at the first dot."""
    row = {"query": "Question: why?\n", "choices": [" a", "b"], "gold": 0}
    asked = read_set(write(tmp_path / "piqa.valid.jsonl", row)).items[0]
    assert asked.contexts[0] == "Question: why?\nAnswer:"
    assert asked.continuations == ("a", "b")
    assert read_set(write(tmp_path / "copa.jsonl", row)).items[0].contexts[0] == "Question: why?"


def test_the_limit(tmp_path: Path) -> None:
    """Only the first items are read; what is wrong behind them does not matter."""
    path = write(tmp_path / "x.jsonl", GOOD, b"", GOOD, b"{")
    assert len(read_set(path, limit=2).items) == 2
    with pytest.raises(InvalidTask, match=r"x\.jsonl, line 4: not valid JSON"):
        read_set(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"[1]", "line 2: holds a JSON list, not an object"),
        (b"\xff{}", "line 2: not UTF-8"),
        ({"query": "q", "choices": ["a", "b"]}, "line 2: no 'gold'"),
        ({**GOOD, "gold": 2}, "line 2: 'gold' is 2, but there are options 0 to 1"),
        ({**GOOD, "gold": -1}, "line 2: 'gold' is -1"),
        ({**GOOD, "gold": True}, "line 2: 'gold' is true"),
        ({**GOOD, "gold": "1"}, "line 2: 'gold' is \"1\""),
        ({**GOOD, "choices": ["a"]}, "line 2: 'choices' is"),
        ({**GOOD, "choices": "ab"}, "line 2: 'choices' is"),
        ({**GOOD, "choices": ["a", " "]}, r"line 2: 'choices\[1\]' is"),
        ({**GOOD, "choices": ["a", None]}, r"line 2: 'choices\[1\]' is null"),
        ({**GOOD, "query": 7}, "line 2: 'query' is 7; text is needed"),
    ],
)
def test_wrong_lines_are_named(row: Any, words: str, tmp_path: Path) -> None:
    """A line that is not of the form says its number and what is wrong with it."""
    with pytest.raises(InvalidTask, match=words):
        read_set(write(tmp_path / "x.jsonl", GOOD, row))


def test_unknown_forms(tmp_path: Path) -> None:
    """A first line of no known form lists the forms; one that wants generation points to lm-eval."""
    with pytest.raises(InvalidTask, match=r"\['prompt'\].*query, choices, gold"):
        read_set(write(tmp_path / "x.jsonl", {"prompt": 1}))
    with pytest.raises(InvalidTask, match=r"generated.*--lm-eval"):
        read_set(write(tmp_path / "gsm8k.jsonl", {"context": "2+2?", "chain_of_thought": "", "answer": "4"}))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_files(content: bytes, tmp_path: Path) -> None:
    """A file without items, or no file at all, is an error of one line."""
    path = write(tmp_path / "x.jsonl", content)
    with pytest.raises(InvalidTask, match="holds no items"):
        read_set(path)
    with pytest.raises(InvalidTask, match="cannot be read"):
        read_set(tmp_path / "nowhere.jsonl")


def test_a_mark_at_the_beginning(tmp_path: Path) -> None:
    """A byte-order mark, as some editors write it, is no error."""
    path = write(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(read_set(path).items) == 1


def test_names_and_paths(tmp_path: Path) -> None:
    """A name is looked for in the folder, exactly; a path is taken as it is."""
    easy = write(tmp_path / "arc_easy.test.jsonl", GOOD)
    write(tmp_path / "arc_easy2.jsonl", GOOD)
    assert find_set("arc_easy", tmp_path) == easy
    assert find_set(str(easy), None) == easy
    with pytest.raises(UsageError, match="--task-folder"):
        find_set("arc_easy", None)
    with pytest.raises(UsageError, match=r"has no boolq\*\.jsonl"):
        find_set("boolq", tmp_path)
    with pytest.raises(UnknownName, match="did you mean 'arc_easy'"):
        find_set("arc_esay", tmp_path)
    write(tmp_path / "arc_easy.valid.jsonl", GOOD)
    with pytest.raises(UsageError, match="several"):
        find_set("arc_easy", tmp_path)


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public evaluation sets are not in ../shared/data/eval")
@pytest.mark.parametrize("name", sorted(TASKS))
def test_public_sets_are_read(name: str) -> None:
    """The files that people have of these sets are of the forms, every line of them."""
    path = find_set(name, PUBLIC)
    found = read_set(path)
    assert found.name == name
    assert len(found.items) == sum(1 for line in path.read_bytes().splitlines() if line.strip())
