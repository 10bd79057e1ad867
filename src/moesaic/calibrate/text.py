"""Calibration text: files to sequences of tokens of one length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moesaic.errors import InvalidText, UsageError
from moesaic.text import Tokenize, bundled_calibration_text, read_text


@dataclass(frozen=True)
class CalibrationText:
    """Which text to calibrate on.

    Attributes:
        files: plain text or JSON lines; the bundled text when there is none.
        sequences: how many at most.
        length: tokens of each; at most what the model was made for.
        seed: of their places in the text.
    """

    files: tuple[Path, ...] = ()
    sequences: int = 128
    length: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.length < 2:
            raise UsageError(
                f"calibration on {self.sequences} sequences of {self.length} tokens: give at least 1 of at least 2"
            )


def calibration_texts(files: Sequence[Path]) -> dict[str, str]:
    """The text of each file, or the bundled one, which mixes domains, when no file is named.

    A file named `*.jsonl` holds one JSON object a line with the text under `"text"`; any other file is plain text.

    Raises:
        InvalidText: a file that cannot be read, or a line that is not such an object.
    """
    if not files:
        return {"bundled": bundled_calibration_text()}
    return {str(file): _jsonl(file) if file.suffix == ".jsonl" else read_text(file) for file in files}


def _jsonl(file: Path) -> str:
    parts = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise InvalidText(f'{file}, line {number}: not a JSON object with a string under "text"')
        parts.append(text)
    return "\n\n".join(parts)


def cut_sequences(texts: dict[str, str], tokenize: Tokenize, *, count: int, length: int, seed: int) -> Tensor:
    """Sequences of tokens, the same number from each text, taken at random places that do not overlap.

    A text that is too short for its share gives what it has, and the others make up for it as far as they can: texts
    of one domain alone are known to misplace bits, so that all named ones take part.

    Args:
        texts: name -> text.
        tokenize: of the model.
        count: sequences wanted.
        length: tokens of each.
        seed: of the places.

    Returns:
        `[n, length]` int64 with `n <= count`.

    Raises:
        InvalidText: a text shorter than one sequence.
    """
    pieces = []
    generator = torch.Generator().manual_seed(seed)
    for name, text in texts.items():
        tokens = torch.tensor(tokenize(text), dtype=torch.int64)
        fit = len(tokens) // length
        if fit == 0:
            raise InvalidText(
                f"{name}: {len(tokens)} tokens are less than one calibration sequence of {length}; give more text or a "
                "smaller --sequence-length"
            )
        rows = tokens[: fit * length].view(fit, length)
        pieces.append(rows[torch.randperm(fit, generator=generator)])
    chosen: list[Tensor] = []
    for turn in range(max(len(piece) for piece in pieces)):
        chosen += [piece[turn] for piece in pieces if turn < len(piece)]
        if len(chosen) >= count:
            break
    return torch.stack(chosen[:count])
