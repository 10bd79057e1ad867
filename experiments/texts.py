"""The texts of a corpus of several domains: passages of train files to calibrate on, test files to measure on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from experiments.train_moe.make_calibration import sample_passages

CALIBRATION_BYTES = 800_000
PASSAGE_CHARACTERS = 3000


class Texts(NamedTuple):
    """What to calibrate on, one file, and what to measure on, one file a domain."""

    calibration: Path
    held_out: list[Path]


def domains_of(corpus: Path) -> list[str]:
    """The names in a corpus folder that have both a train and a test file, in alphabetical order.

    Raises:
        ValueError: there are none.
    """
    trained = {path.name.removesuffix(".train.txt") for path in corpus.glob("*.train.txt")}
    tested = {path.name.removesuffix(".test.txt") for path in corpus.glob("*.test.txt")}
    if not trained & tested:
        raise ValueError(f"{corpus}: no DOMAIN.train.txt with a DOMAIN.test.txt; give the folder of the corpus")
    return sorted(trained & tested)


def texts_of(corpus: Path, folder: Path) -> Texts:
    """The texts; the calibration file, equal shares of all domains, is made in `folder` if it is not there."""
    domains = domains_of(corpus)
    calibration = folder / "calibration.txt"
    if not calibration.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = sample_passages(
            corpus, domains, "train", total_bytes=CALIBRATION_BYTES, passage_chars=PASSAGE_CHARACTERS
        )
        calibration.write_text(text, encoding="utf-8")
    return Texts(calibration, [corpus / f"{domain}.test.txt" for domain in domains])
