"""Blocks of held-out text: equal shares of every file, evenly spread over it, in parts that share no token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moesaic.runtime.hf import open_tokenizer


@dataclass(frozen=True)
class Blocks:
    """Blocks of tokens and where they come from.

    Attributes:
        ids: `[n, length]` token ids.
        sources: `[n]`, the name of each block's text.
    """

    ids: Tensor
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def tokens(self) -> int:
        """Tokens in all blocks."""
        return self.ids.numel()

    def take(self, chosen: Sequence[int]) -> Blocks:
        """Some of the blocks, by number."""
        return Blocks(self.ids[list(chosen)], tuple(self.sources[number] for number in chosen))


def read_blocks(folder: Path, texts: Sequence[Path], *, tokens: int, length: int) -> Blocks:
    """Cut texts into blocks with a model's tokenizer, the same number from each text.

    The blocks of one text are spread evenly over it, and the texts take turns: the first blocks are of all texts.

    Args:
        folder: of the model.
        texts: plain text files; a block's source is the name of its file up to the first full stop.
        tokens: wanted in all; fewer where a text is too short for its share.
        length: tokens of each block.

    Raises:
        ValueError: no texts, or one that is shorter than a block.
    """
    if not texts:
        raise ValueError("no held-out text; give at least one file")
    tokenize = open_tokenizer(folder)
    wanted = max(1, tokens // length // len(texts))
    parts: list[tuple[str, Tensor]] = []
    for path in texts:
        ids = tokenize(path.read_text(encoding="utf-8"), verbose=False)["input_ids"]
        fit = len(ids) // length
        if fit == 0:
            raise ValueError(f"{path}: {len(ids)} tokens are less than one block of {length}")
        whole = torch.tensor(ids[: fit * length]).view(fit, length)
        count = min(fit, wanted)
        parts.append((path.name.split(".")[0], whole[torch.arange(count) * fit // count]))
    turns = [
        (name, rows[turn]) for turn in range(max(len(r) for _, r in parts)) for name, rows in parts if turn < len(rows)
    ]
    return Blocks(torch.stack([row for _, row in turns]), tuple(name for name, _ in turns))


def split(blocks: Blocks, share: float) -> tuple[Blocks, Blocks]:
    """Two parts without common blocks; the first has about that share of every source's blocks, evenly spread."""
    first: list[int] = []
    for name in dict.fromkeys(blocks.sources):
        own = [number for number, source in enumerate(blocks.sources) if source == name]
        first += [number for at, number in enumerate(own) if int((at + 1) * share) > int(at * share)]
    chosen = set(first)
    return blocks.take(sorted(chosen)), blocks.take([n for n in range(len(blocks)) if n not in chosen])
