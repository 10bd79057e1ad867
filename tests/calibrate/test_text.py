"""Calibration text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moesaic.calibrate.text import CalibrationText, calibration_texts, cut_sequences
from moesaic.errors import InvalidText, UsageError


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_every_text_takes_its_share():
    """Sequences come from all texts in turn, so that no domain is left out, and are the text's own tokens."""
    texts = {"a": "a" * 100, "b": "b" * 100, "c": "c" * 25}
    found = cut_sequences(texts, letters, count=9, length=10, seed=0)
    assert found.shape == (9, 10)
    assert [chr(int(row[0])) for row in found] == ["a", "b", "c", "a", "b", "c", "a", "b", "a"]


def test_sequences_do_not_overlap_and_depend_on_the_seed():
    """The same seed gives the same sequences, another one others; none is used twice."""
    texts = {"x": "".join(chr(32 + number) for number in range(90))}
    first = cut_sequences(texts, letters, count=4, length=10, seed=0)
    assert torch.equal(first, cut_sequences(texts, letters, count=4, length=10, seed=0))
    assert not torch.equal(first, cut_sequences(texts, letters, count=4, length=10, seed=1))
    assert len(set(first.flatten().tolist())) == 40


def test_fewer_sequences_than_asked_for():
    """A short text gives what it has, and not a copy."""
    assert len(cut_sequences({"x": "y" * 35}, letters, count=8, length=10, seed=0)) == 3


def test_text_shorter_than_a_sequence_is_refused():
    """The message names the text, its tokens and the remedy."""
    with pytest.raises(InvalidText, match=r"short: 9 tokens.*sequence of 10.*--sequence-length"):
        cut_sequences({"long": "x" * 50, "short": "x" * 9}, letters, count=2, length=10, seed=0)


def test_json_lines(tmp_path: Path):
    """The texts of a JSON lines file are joined; the bundled text is used when no file is named."""
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "id": 3}\n')
    assert calibration_texts([path]) == {str(path): "one\n\ntwo"}
    (bundled,) = calibration_texts([]).values()
    assert len(bundled) > 100_000


@pytest.mark.parametrize("line", ["{", '{"txt": "x"}', '{"text": 3}', "[1]"])
def test_malformed_json_lines_are_refused(line: str, tmp_path: Path):
    """The message names file and line."""
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(InvalidText, match=r"some\.jsonl, line 2"):
        calibration_texts([path])


@pytest.mark.parametrize("what", ["missing", "empty", "latin-1"])
def test_files_that_are_no_text_are_refused(what: str, tmp_path: Path):
    """No such file, nothing in it, or an encoding that is not UTF-8: one line with the name."""
    path = tmp_path / "text.txt"
    if what != "missing":
        path.write_bytes(b"  \n" if what == "empty" else "schön".encode("latin-1"))
    with pytest.raises(InvalidText, match=r"text\.txt"):
        calibration_texts([path])


def test_impossible_amounts_are_refused():
    """No sequences, or sequences of one token, are a wrong call."""
    for wrong in ({"sequences": 0}, {"length": 1}):
        with pytest.raises(UsageError, match="at least"):
            CalibrationText(**wrong)
