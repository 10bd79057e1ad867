"""Calibration text as windows of one length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moesaic.errors import InvalidText


def token_windows(
    tokens: list[int], *, length: int, limit: int | None = None, least: int, seed: int, vocabulary: int
) -> Tensor:
    """Cut tokens into windows that do not overlap, and take some of them by chance.

    Args:
        tokens: the whole text.
        length: tokens of a window.
        limit: how many tokens to take in all; None for all.
        least: how many windows there have to be.
        seed: of the choice; the same windows in the same order for the same seed.
        vocabulary: number of tokens that the model has.

    Returns:
        `[windows, length]` int64.

    Raises:
        InvalidText: too short, or with a token that the model does not have.
    """
    found = len(tokens) // length
    if found < least:
        raise InvalidText(
            f"the calibration text has {len(tokens)} tokens, which is {found} windows of {length}; at least {least} "
            "are needed: give a longer text, or a shorter window"
        )
    if max(tokens) >= vocabulary:
        raise InvalidText(f"the tokenizer makes token {max(tokens)}, which the model does not have")
    rows = torch.tensor(tokens[: found * length]).view(found, length)
    chosen = torch.randperm(found, generator=torch.Generator().manual_seed(seed))
    wanted = found if limit is None else max(least, limit // length)
    return rows[chosen[:wanted]]


def batches(windows: Tensor, tokens: int) -> list[Tensor]:
    """Windows in batches of at most that many tokens, at least one window each."""
    rows = max(1, tokens // windows.shape[1])
    return [windows[first : first + rows] for first in range(0, len(windows), rows)]


def tokenized(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, nothing added."""
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found
