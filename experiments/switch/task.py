"""The fine-tuning task: put the words of a sentence back in order. Its text, its batches and its simple baselines.

The input is a sentence of the corpus with its words in random order, the output the sentence. A model has to pick the
words from its input (routing, attention) and to know the language (which word follows which). Copying the input is the
baseline that knows no language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from experiments.train_moe.data import Batch, read_documents
from experiments.train_moe.recipe import Recipe
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedTokenizerFast

IGNORED = -100  # label of padding
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SENTENCE = re.compile(r"[A-ZÄÖÜ][\w ,;:'’\-äöüßÄÖÜ]*[.!?]")


@dataclass(frozen=True)
class Item:
    """One sentence, with the domain it is from."""

    domain: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The sentence."""
        return " ".join(self.words)


def sentences(documents: Iterable[str], domain: str, shortest: int, longest: int) -> list[Item]:
    """The sentences of plain words, of `shortest` to `longest` words, each once, in the order of the text."""
    found: dict[str, Item] = {}
    for document in documents:
        for paragraph in document.split("\n\n"):
            for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
                words = tuple(sentence.split())
                if shortest <= len(words) <= longest and _SENTENCE.fullmatch(sentence):
                    found.setdefault(sentence, Item(domain, words))
    return list(found.values())


def read_items(
    corpus: Path, domains: Sequence[str], split: str, lengths: tuple[int, int], max_chars: int | None = None
) -> list[Item]:
    """All sentences of a split, domain after domain."""
    return [
        item
        for domain in domains
        for item in sentences(read_documents(corpus, domain, split, max_chars), domain, *lengths)
    ]


def even_sample(items: Sequence[Item], number: int) -> list[Item]:
    """`number` items at even distances, so that every domain keeps its share; all, if they are fewer."""
    count = min(number, len(items))
    return [items[at * len(items) // count] for at in range(count)]


def shuffled(item: Item, rng: np.random.Generator) -> str:
    """The words in random order."""
    return " ".join(item.words[at] for at in rng.permutation(len(item.words)))


def shuffled_inputs(items: Sequence[Item], seed: int) -> list[str]:
    """The inputs of held-out items: always the same order of words, whatever is measured."""
    return [shuffled(item, np.random.default_rng([seed, number])) for number, item in enumerate(items)]


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids, an end-of-text token after each; a space before the first word, so that it is no special case."""
    encoded = tokenizer.backend_tokenizer.encode_batch([" " + text for text in texts])
    return [[*encoding.ids, tokenizer.eos_token_id] for encoding in encoded]


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows of token ids in one tensor, filled up on the right. `[rows, longest]`"""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def make_batch(sources: Sequence[list[int]], targets: Sequence[list[int]], pad: int) -> Batch:
    """Model inputs: `input_ids`, `attention_mask`, and `labels` with `IGNORED` for padding."""
    ids = padded(sources, pad)
    lengths = torch.tensor([len(source) for source in sources])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": padded(targets, IGNORED)}


class TaskOrder:
    """Batch of every step as a function of seed and step: an epoch is one shuffled pass over the sentences.

    Every time a sentence comes its words are in a new order.
    """

    def __init__(self, items: Sequence[Item], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        if len(items) < recipe.batch_size:
            raise ValueError(f"{len(items)} training sentences are less than one batch of {recipe.batch_size}")
        self._items, self._tokenizer, self.recipe = items, tokenizer, recipe

    def batch(self, step: int) -> Batch:
        """Inputs of the update that follows `step` finished ones; the last incomplete batch of an epoch is left out."""
        recipe = self.recipe
        per_epoch = len(self._items) // recipe.batch_size
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([recipe.seed, 5, epoch]).permutation(len(self._items))
        chosen = [self._items[at] for at in order[place * recipe.batch_size : (place + 1) * recipe.batch_size]]
        rng = np.random.default_rng([recipe.seed, 6, step])
        sources = encode(self._tokenizer, [shuffled(item, rng) for item in chosen])
        targets = encode(self._tokenizer, [item.text for item in chosen])
        return make_batch(sources, targets, self._tokenizer.pad_token_id)


def rouge2(references: Sequence[str], outputs: Sequence[str]) -> list[float]:
    """ROUGE-2 F1 of each output, in per cent, by Google's `rouge_score` (lower case, no stemmer)."""
    scorer = RougeScorer(["rouge2"])
    pairs = zip(references, outputs, strict=True)
    return [100 * scorer.score(reference, output)["rouge2"].fmeasure for reference, output in pairs]


def baselines(items: Sequence[Item], training: Sequence[Item], seed: int) -> dict[str, float]:
    """Mean ROUGE-2 without a model: the input as it is, chains of known word pairs, the commonest training sentence.

    `chained` starts at the first capitalised word and goes on with the word of the input that most often followed
    the last one in the training sentences, ties in the order of the input.
    """
    references, inputs = [item.text for item in items], shuffled_inputs(items, seed)
    pairs: dict[tuple[str, str], int] = {}
    for item in training:
        for pair in zip(item.words, item.words[1:], strict=False):
            pairs[pair] = pairs.get(pair, 0) + 1
    chained = [_chain(text.split(), pairs) for text in inputs]
    constant = [training[0].text] * len(items)
    found = {"copy_input": inputs, "chained": chained, "constant": constant}
    return {name: float(np.mean(rouge2(references, outputs))) for name, outputs in found.items()}


def _chain(words: list[str], pairs: dict[tuple[str, str], int]) -> str:
    rest = list(words)
    first = next((word for word in rest if word[0].isupper()), rest[0])
    rest.remove(first)
    line = [first]
    while rest:
        last = [word for word in rest if word[-1] in ".!?"]
        free = [word for word in rest if word not in last] or rest
        following = max(free, key=lambda word: pairs.get((line[-1], word), 0))
        rest.remove(following)
        line.append(following)
    return " ".join(line)
