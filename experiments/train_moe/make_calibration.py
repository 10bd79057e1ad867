"""Sample passages evenly from corpus domains into one text file, for calibration or evaluation.

`python -m experiments.train_moe.make_calibration --corpus FOLDER --out FILE`
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from .data import SEPARATOR, read_documents


def cut_passages(document: str, length: int) -> list[str]:
    """The document in pieces of at most `length` characters, cut at paragraphs, lines or words."""
    pieces = []
    rest = document.strip("\n")
    while rest:
        end = len(rest)
        if end > length:
            cuts = (rest.rfind(mark, length // 2, length) for mark in ("\n\n", "\n", " "))
            end = next((cut for cut in cuts if cut > 0), length)
        pieces.append(rest[:end].rstrip())
        rest = rest[end:].lstrip("\n")
    return [piece for piece in pieces if len(piece) >= length // 4]


def choose_passages(documents: list[str], budget: int, length: int, rng: random.Random) -> list[str]:
    """Passages of at most `budget` bytes with separators: one per document, then a second one, and so on."""
    decks = [cut_passages(document, length) for document in rng.sample(documents, len(documents))]
    for deck in decks:
        rng.shuffle(deck)
    chosen: list[str] = []
    for turn in range(max(map(len, decks), default=0)):
        for deck in decks:
            if turn >= len(deck):
                continue
            size = len((deck[turn] + SEPARATOR).encode())
            if size > budget:
                return chosen
            chosen.append(deck[turn])
            budget -= size
    return chosen


def sample_passages(
    corpus: Path, domains: list[str], split: str, *, total_bytes: int, passage_chars: int, seed: int = 0
) -> str:
    """Passages of all domains, the same number of bytes from each, in random order."""
    chosen = []
    for number, domain in enumerate(domains):
        documents = read_documents(corpus, domain, split)
        rng = random.Random(1000 * seed + number)
        chosen += choose_passages(documents, total_bytes // len(domains), passage_chars, rng)
    random.Random(seed).shuffle(chosen)
    return SEPARATOR.join(chosen) + "\n"


def main(
    *,
    corpus: Annotated[Path, typer.Option(help="Folder of DOMAIN.{train,valid,test}.txt files.", exists=True)],
    out: Annotated[Path, typer.Option(help="Text file to write.")],
    domains: Annotated[str, typer.Option(help="Comma-separated domains.")] = "textbook,literature,code",
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
    total_bytes: Annotated[int, typer.Option(help="Upper limit of the file size.")] = 600_000,
    passage_chars: Annotated[int, typer.Option(help="Longest passage.")] = 3000,
    seed: Annotated[int, typer.Option(help="Seed of the choice.")] = 0,
) -> None:
    """Write passages separated by "<|doc|>" lines."""
    names = domains.split(",")
    text = sample_passages(corpus, names, split, total_bytes=total_bytes, passage_chars=passage_chars, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    typer.echo(f"{out}: {len(text.encode())} bytes, {text.count(SEPARATOR) + 1} passages")


if __name__ == "__main__":
    typer.run(main)
