"""Calibration text."""

from __future__ import annotations

import pytest
import torch

from moesaic.errors import InvalidText
from moesaic.fit.text import batches, token_windows, tokenized
from tests.talking import make_tokenizer


def test_windows_are_pieces_of_the_text() -> None:
    """Every window is a run of the text, none overlaps another, and the limit is kept."""
    found = token_windows(list(range(103)), length=10, limit=45, least=1, seed=0, vocabulary=200)
    assert found.shape == (4, 10)
    assert all(row.tolist() == list(range(int(row[0]), int(row[0]) + 10)) for row in found)
    assert len({int(row[0]) for row in found} & set(range(0, 100, 10))) == 4


def test_the_seed_chooses() -> None:
    """The same seed takes the same windows, another one others."""
    arguments = {"length": 10, "limit": 50, "least": 1, "vocabulary": 9999}
    first = token_windows(list(range(1000)), seed=1, **arguments)
    assert torch.equal(first, token_windows(list(range(1000)), seed=1, **arguments))
    assert not torch.equal(first, token_windows(list(range(1000)), seed=2, **arguments))


def test_refuses_a_text_that_is_too_short() -> None:
    """Too few windows is an error that says how many there are."""
    with pytest.raises(InvalidText, match="2 windows of 10; at least 3"):
        token_windows(list(range(29)), length=10, least=3, seed=0, vocabulary=99)


def test_refuses_tokens_that_the_model_lacks() -> None:
    """A tokenizer of another model is noticed."""
    with pytest.raises(InvalidText, match="token 29"):
        token_windows(list(range(30)), length=10, least=1, seed=0, vocabulary=29)


def test_batches_hold_every_window_once() -> None:
    """Batches stay within the number of tokens, and a window longer than that is a batch of its own."""
    windows = torch.arange(70).view(7, 10)
    assert [len(each) for each in batches(windows, 30)] == [3, 3, 1]
    assert torch.equal(torch.cat(batches(windows, 30)), windows)
    assert len(batches(windows, 4)) == 7


def test_nothing_is_added_to_the_text() -> None:
    """Token ids are those of the text."""
    assert len(tokenized(make_tokenizer(), "abc")) == 3
