"""Tiny models that read and write text: a tokenizer with a token for every printable ASCII character."""

from __future__ import annotations

import shutil
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

PROSE = "The miller's cat sat on the wall and watched the carts go by. It was market day, and no one looked up.\n"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of characters, with ids below 128."""
    vocabulary = {"<pad>": 0, "<end>": 1, "<unk>": 2}
    for character in string.printable:
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=10**6
    )


def talking_copy(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint, with the tokenizer."""
    shutil.copytree(checkpoint, folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_text(path: Path, characters: int = 500) -> Path:
    """A text file."""
    path.write_text((PROSE * (characters // len(PROSE) + 1))[:characters], encoding="utf-8")
    return path
