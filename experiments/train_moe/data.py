"""Corpus, tokenizer, packed windows and span corruption."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .recipe import Recipe

SEPARATOR = "\n\n<|doc|>\n\n"
EOS, PAD = "<|doc|>", "<|pad|>"
SENTINELS = 100
SPLITS = ("train", "valid", "test")

Batch = dict[str, torch.Tensor]


def read_documents(corpus: Path, domain: str, split: str, max_chars: int | None = None) -> list[str]:
    """Documents of `DOMAIN.SPLIT.txt`, in file order, up to about `max_chars` characters."""
    text = (corpus / f"{domain}.{split}.txt").read_text(encoding="utf-8")
    if max_chars is not None:
        text = text[:max_chars]
    return [document for document in text.split(SEPARATOR) if document.strip()]


def train_tokenizer(documents: Iterator[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose end-of-text token is the corpus' document separator."""
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)] if recipe.seq2seq else []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[EOS, PAD, *sentinels],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=sentinels,
        clean_up_tokenization_spaces=False,
        model_max_length=int(recipe.config.get("max_position_embeddings", recipe.seq_len)),
    )


def prepare_tokenizer(corpus: Path, recipe: Recipe, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a run: the one in `folder` if it was trained before, else a new one."""
    if not folder.exists():
        documents = (
            document
            for domain in recipe.domains
            for document in read_documents(corpus, domain, "train", recipe.max_chars)
        )
        unfinished = folder.with_name(folder.name + ".unfinished")
        train_tokenizer(documents, recipe).save_pretrained(unfinished)
        os.replace(unfinished, folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def prepare_tokens(
    corpus: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, path: Path
) -> dict[str, torch.Tensor]:
    """Token streams `DOMAIN.SPLIT`, an end-of-text token after every document; cached in `path`."""
    if not path.exists():
        streams = {}
        for domain in recipe.domains:
            for split in SPLITS:
                documents = read_documents(corpus, domain, split, recipe.max_chars)
                ids: list[int] = []
                for encoding in tokenizer.backend_tokenizer.encode_batch(documents):
                    ids += encoding.ids
                    ids.append(tokenizer.eos_token_id)
                streams[f"{domain}.{split}"] = torch.tensor(ids, dtype=torch.int32)
        unfinished = path.with_name(path.name + ".unfinished")
        save_file(streams, unfinished)
        os.replace(unfinished, path)
    return load_file(path)


def windows(stream: torch.Tensor, seq_len: int) -> torch.Tensor:
    """The stream cut in rows of `seq_len` tokens; the incomplete last row is dropped."""
    count = len(stream) // seq_len
    return stream[: count * seq_len].view(count, seq_len)


def _random_parts(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of `parts` positive integers, uniformly at random."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [total])))


def corrupt_spans(window: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Span corruption as in T5: (encoder input, target), both ending in end-of-text.

    Lengths depend on the window's length alone, so a batch needs no padding.
    """
    length = len(window)
    noise = min(max(1, round(length * recipe.noise_density)), length - 1)
    spans = min(max(1, round(noise / recipe.mean_span)), noise, length - noise, SENTINELS)
    kept = _random_parts(length - noise, spans, rng)
    dropped = _random_parts(noise, spans, rng)
    source: list[int] = []
    target: list[int] = []
    at = 0
    for i in range(spans):
        sentinel = 2 + i
        source += [*window[at : at + kept[i]].tolist(), sentinel]
        at += int(kept[i])
        target += [sentinel, *window[at : at + dropped[i]].tolist()]
        at += int(dropped[i])
    return [*source, 0], [*target, 0]


def make_batch(rows: torch.Tensor, recipe: Recipe, rng: np.random.Generator) -> Batch:
    """Model inputs of some windows: the next-token task, or span corruption for an encoder-decoder."""
    rows = rows.long()
    if not recipe.seq2seq:
        return {"input_ids": rows, "labels": rows}
    pairs = [corrupt_spans(row, recipe, rng) for row in rows.numpy()]
    return {
        "input_ids": torch.tensor([source for source, _ in pairs]),
        "labels": torch.tensor([target for _, target in pairs]),
    }


def predicted_tokens(batch: Batch, recipe: Recipe) -> torch.Tensor:
    """The tokens of a batch that the loss is taken over."""
    return batch["labels"] if recipe.seq2seq else batch["labels"][:, 1:]


class TrainingOrder:
    """Batch of every step as a function of seed and step: an epoch is one shuffled pass over the windows."""

    def __init__(self, rows: torch.Tensor, recipe: Recipe) -> None:
        if len(rows) == 0:
            raise ValueError(f"the training text is shorter than one window of {recipe.seq_len} tokens")
        self._rows, self.recipe = rows, recipe
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._rows))
        if epoch != self._epoch:
            rng = np.random.default_rng([self.recipe.seed, 1, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self._rows))
        return int(self._order[offset])

    def batch(self, step: int) -> Batch:
        """Inputs of the update that follows `step` finished ones."""
        size = self.recipe.batch_size
        chosen = [self._row(position) for position in range(step * size, (step + 1) * size)]
        rng = np.random.default_rng([self.recipe.seed, 2, step])
        return make_batch(self._rows[torch.tensor(chosen)], self.recipe, rng)
