"""A small corpus from the text that is bundled with the package, for the quick form."""

from __future__ import annotations

from pathlib import Path

from experiments.train_moe.data import SEPARATOR

BUNDLED = Path(__file__).resolve().parents[2] / "src" / "moesaic" / "data" / "calibration.txt"
HELD_OUT = 8  # every eighth document is for validation, the one after it for the test


def bundled_corpus(folder: Path) -> Path:
    """Write the bundled passages as one domain, `text`, in three splits; returns the folder."""
    documents = BUNDLED.read_text(encoding="utf-8").split(SEPARATOR)
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for number, document in enumerate(documents):
        splits[{0: "valid", 1: "test"}.get(number % HELD_OUT, "train")].append(document)
    folder.mkdir(parents=True, exist_ok=True)
    for split, chosen in splits.items():
        (folder / f"text.{split}.txt").write_text(SEPARATOR.join(chosen), encoding="utf-8")
    return folder
