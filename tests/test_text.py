"""Text files and windows of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import InvalidText
from moesaic.text import Window, bundled_calibration_text, read_text, windows

LENGTHS = st.integers(2, 40)
COUNTS = st.integers(2, 200)


def scored(cut: list[Window]) -> list[int]:
    """The tokens that are scored, in order. Tokens are their own positions here."""
    return [token for window in cut for token in window.tokens[-window.scored :]]


@given(COUNTS, LENGTHS, st.data())
def test_overlapping_windows_score_every_token_once(count: int, length: int, data: st.DataObject) -> None:
    """With a stride below the length, every token but the first is scored exactly once, in order."""
    stride = data.draw(st.integers(1, length - 1))
    cut = windows(list(range(count)), length=length, stride=stride)
    assert scored(cut) == list(range(1, count))
    for window in cut:
        assert len(window.tokens) <= length
        assert window.tokens == tuple(range(window.tokens[0], window.tokens[-1] + 1))
        assert window.scored < len(window.tokens)
        context = len(window.tokens) - window.scored
        assert window.tokens[0] == 0 or context >= length - stride


@given(COUNTS, LENGTHS)
def test_windows_side_by_side_lose_their_first_tokens(count: int, length: int) -> None:
    """With a stride equal to the length, all tokens are scored but the first of each window, which has no context."""
    cut = windows(list(range(count)), length=length, stride=length)
    assert scored(cut) == [token for token in range(count) if token % length]


@given(COUNTS, LENGTHS, st.integers(2, 300))
def test_a_limit_is_a_shorter_text(count: int, length: int, limit: int) -> None:
    """A limit gives the windows of the text cut there."""
    tokens = list(range(count))
    assert windows(tokens, length=length, stride=1, limit=limit) == windows(tokens[:limit], length=length, stride=1)


@pytest.mark.parametrize("tokens", [[], [5]])
def test_too_little_text(tokens: list[int]) -> None:
    """Fewer than two tokens cannot be scored."""
    with pytest.raises(InvalidText, match=f"{len(tokens)} tokens"):
        windows(tokens, length=4, stride=4)


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (0, 0), (4, 5), (4, 0)])
def test_impossible_windows(length: int, stride: int) -> None:
    """A window holds at least two tokens, and a stride leaves none out."""
    with pytest.raises(ValueError, match="window"):
        windows([1, 2, 3], length=length, stride=stride)


def test_text_is_read_as_utf8(tmp_path: Path) -> None:
    """What was written is what is read."""
    (tmp_path / "text.txt").write_bytes("naïve — 文\r\n".encode())
    assert read_text(tmp_path / "text.txt") == "naïve — 文\r\n"


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "holds no text"), (b" \n\t", "holds no text"), (b"ab\xff", "byte 2 is 0xff")]
)
def test_unreadable_text(data: bytes, words: str, tmp_path: Path) -> None:
    """Empty text, and bytes that are not UTF-8, are refused with the place."""
    (tmp_path / "text.txt").write_bytes(data)
    with pytest.raises(InvalidText, match=words):
        read_text(tmp_path / "text.txt")


def test_no_text(tmp_path: Path) -> None:
    """A file that is not there is named, and so is a folder."""
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(InvalidText, match="cannot be read"):
            read_text(path)


def test_the_bundled_text_is_real() -> None:
    """The calibration text comes with the package: at most 1 MB, and prose."""
    text = bundled_calibration_text()
    assert 10_000 < len(text.encode()) <= 1_000_000
    assert text.count(" ") > len(text) / 20
