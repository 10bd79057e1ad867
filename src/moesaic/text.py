"""Text files to windows of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from moesaic.errors import InvalidText

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class Window:
    """A run of tokens of which the last `scored` are measured, the others are context.

    Attributes:
        tokens: token ids.
        scored: how many tokens at the end count; the first token of a text has no context and never does.
    """

    tokens: tuple[int, ...]
    scored: int


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        InvalidText: no such file, not UTF-8 (says where), or nothing in it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidText(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidText(f"{path}: not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}); convert it") from None
    if not text.strip():
        raise InvalidText(f"{path}: holds no text")
    return text


def bundled_calibration_text() -> str:
    """The small text that comes with the package; its NOTICE names the sources."""
    return files("moesaic.data").joinpath("calibration.txt").read_text(encoding="utf-8")


def windows(tokens: list[int], *, length: int, stride: int, limit: int | None = None) -> list[Window]:
    """Cut tokens into windows so that no token is scored twice, and each has as much context as there is room for.

    With a stride below the length, every token but the first of the text is scored exactly once. With a stride equal
    to the length (the convention of the papers) windows do not overlap, and the first token of each, which has no
    context there, is not scored.

    Args:
        tokens: the whole text.
        length: tokens of a window, at least 2.
        stride: tokens between the starts of windows, at most `length`.
        limit: use only this many tokens of the text.

    Raises:
        InvalidText: fewer than two tokens.
        ValueError: `stride` or `length` out of range.
    """
    if length < 2 or not 1 <= stride <= length:
        raise ValueError(f"need window >= 2 and 1 <= stride <= window, got window {length}, stride {stride}")
    tokens = tokens[:limit]
    if len(tokens) < 2:
        raise InvalidText(f"the text has {len(tokens)} tokens; at least 2 are needed")
    found = []
    scored_to = 1  # the first token has no context
    for start in range(0, len(tokens), stride):
        stop = min(start + length, len(tokens))
        scored = min(stop - scored_to, stop - start - 1)
        if scored > 0:
            found.append(Window(tuple(tokens[start:stop]), scored))
        scored_to = stop
        if stop == len(tokens):
            break
    return found
