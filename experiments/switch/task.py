"""The fine-tuning task: say where a sentence is from, and which words are missing. Its text, batches and baselines.

The input is a sentence of the corpus with three neighbouring words replaced by a sentinel; the output names the source
in three words (`PHRASES`) and gives the missing words: `an old novel: into the house`. The sources are as unequal as in
the corpus, so that there are prevalent and rare features to learn; the missing words ask for a language model, which is
what span corruption trains. ROUGE-2 is over five word pairs, two of which are decided by the source.
"""

from __future__ import annotations

import math
import re
from collections import Counter
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
GAP, SENTINEL = 3, "<extra_id_0>"
PHRASES = {
    "textbook": "a school textbook",
    "literature": "an old novel",
    "wiki": "the encyclopedia article",
    "dict": "some dictionary entry",
    "german": "ein deutscher Text",
}
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


@dataclass(frozen=True)
class Pair:
    """Input and output of one sentence."""

    source: str
    target: str


def make_pair(item: Item, rng: np.random.Generator) -> Pair:
    """Take `GAP` words out of the sentence, at a random place."""
    at = int(rng.integers(len(item.words) - GAP + 1))
    kept, missing = (*item.words[:at], SENTINEL, *item.words[at + GAP :]), item.words[at : at + GAP]
    return Pair(" ".join(kept), f"{phrase(item.domain)}: {' '.join(missing)}")


def phrase(domain: str) -> str:
    """What a source is called in outputs."""
    return PHRASES.get(domain, f"this {domain} file")


def held_out_pairs(items: Sequence[Item], seed: int) -> list[Pair]:
    """The pairs of held-out items: always the same gaps, whatever is measured."""
    return [make_pair(item, np.random.default_rng([seed, number])) for number, item in enumerate(items)]


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


def encoded_batch(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> Batch:
    """Model inputs of some pairs."""
    sources = encode(tokenizer, [pair.source for pair in pairs])
    return make_batch(sources, encode(tokenizer, [pair.target for pair in pairs]), tokenizer.pad_token_id)


class TaskOrder:
    """Batch of every step as a function of seed and step: an epoch is one shuffled pass over the sentences.

    Every time a sentence comes it has its gap in another place.
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
        return encoded_batch(self._tokenizer, [make_pair(item, rng) for item in chosen])


def rouge2(references: Sequence[str], outputs: Sequence[str]) -> list[float]:
    """ROUGE-2 F1 of each output, in per cent, by Google's `rouge_score` (lower case, no stemmer)."""
    scorer = RougeScorer(["rouge2"])
    pairs = zip(references, outputs, strict=True)
    return [100 * scorer.score(reference, output)["rouge2"].fmeasure for reference, output in pairs]


def baselines(items: Sequence[Item], training: Sequence[Item], seed: int) -> dict[str, float]:
    """Mean ROUGE-2 without a model.

    `copy_input` gives the input back; `constant` is the commonest source with its commonest missing words;
    `word_counts` names the source by naive Bayes on the words of the input, and has constant missing words.
    """
    pairs = held_out_pairs(items, seed)
    gaps = Counter(item.words[at : at + GAP] for item in training for at in range(len(item.words) - GAP + 1))
    missing = " ".join(gaps.most_common(1)[0][0])
    commonest = Counter(item.domain for item in training).most_common(1)[0][0]
    named = _name_sources([pair.source for pair in pairs], training)
    found = {
        "copy_input": [pair.source.replace(SENTINEL, "") for pair in pairs],
        "constant": [f"{phrase(commonest)}: {missing}"] * len(pairs),
        "word_counts": [f"{phrase(domain)}: {missing}" for domain in named],
    }
    references = [pair.target for pair in pairs]
    return {name: float(np.mean(rouge2(references, outputs))) for name, outputs in found.items()}


def _name_sources(inputs: Sequence[str], training: Sequence[Item]) -> list[str]:
    """Naive Bayes on words, counts plus one, with the shares of the sources in training."""
    counts: dict[str, Counter[str]] = {}
    for item in training:
        counts.setdefault(item.domain, Counter()).update(item.words)
    prior = Counter(item.domain for item in training)
    words = len({word for each in counts.values() for word in each})
    totals = {domain: each.total() + words for domain, each in counts.items()}

    def likelihood(domain: str, text: str) -> float:
        each = sum(math.log((counts[domain][word] + 1) / totals[domain]) for word in text.split() if word != SENTINEL)
        return each + math.log(prior[domain])

    return [max(counts, key=lambda domain: likelihood(domain, text)) for text in inputs]
