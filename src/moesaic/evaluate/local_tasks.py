"""Run evaluation sets on a model, and compare two models item by item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from moesaic.errors import InvalidTask
from moesaic.evaluate.choice import ACCURACY, choices
from moesaic.evaluate.intervals import paired_share_difference, share
from moesaic.evaluate.likelihood import Answer, Request, answers, encode
from moesaic.evaluate.quality import Mean, mean_with_interval
from moesaic.evaluate.tasks import CHOICE, EvaluationSet
from moesaic.progress import SILENT, Progress


@dataclass(frozen=True)
class TaskOutcome:
    """What a model did with a set, item by item.

    Attributes:
        chosen: measure -> option taken for each item; for last words 0 where the model says them, else -1.
        gold: the right option of each item.
        log_likelihoods: of the last words; empty for multiple choice.
        cut: items of which a context did not fit into the model.
    """

    chosen: dict[str, list[int]]
    gold: list[int]
    log_likelihoods: list[float]
    cut: int

    def hits(self, measure: str) -> list[bool]:
        """Which items are right by that measure."""
        return [ours == right for ours, right in zip(self.chosen[measure], self.gold, strict=True)]


@dataclass(frozen=True)
class Figure:
    """A measure of a set, alone or beside that of the reference.

    Attributes:
        value: share of right items (or what the name says), with its interval.
        reference: the reference model's.
        difference: value minus reference, with the interval of the paired difference.
    """

    value: Mean
    reference: Mean | None = None
    difference: Mean | None = None


def run_task(
    model: PreTrainedModel, tokenizer: Any, questions: EvaluationSet, *, longest: int, progress: Progress = SILENT
) -> TaskOutcome:
    """Let a model answer every item of a set.

    Args:
        model: causal or encoder-decoder language model.
        tokenizer: the model's.
        questions: the set.
        longest: tokens that the model can read at once.
        progress: told of what is done.

    Raises:
        InvalidTask: an item of which the tokenizer makes no tokens, or tokens that the model does not have.
    """
    requests = _requests(model, tokenizer, questions)
    progress.start(questions.name, len(set(requests)))
    flat = iter(answers(model, requests, longest=longest, progress=progress))
    found = [[next(flat) for _ in item.contexts] for item in questions.items]
    gold = [item.gold for item in questions.items]
    cut = sum(any(answer.cut for answer in each) for each in found)
    if questions.kind == CHOICE:
        return TaskOutcome(choices(questions, found), gold, [], cut)
    words: list[Answer] = [each[0] for each in found]
    said = {ACCURACY: [0 if word.greedy else -1 for word in words]}
    return TaskOutcome(said, gold, [word.log_likelihood for word in words], cut)


def _requests(model: PreTrainedModel, tokenizer: Any, questions: EvaluationSet) -> list[Request]:
    known = model.get_input_embeddings().num_embeddings
    requests = []
    for item in questions.items:
        for context, continuation in zip(item.contexts, item.continuations, strict=True):
            request = encode(
                tokenizer,
                context,
                continuation,
                encoder_decoder=model.config.is_encoder_decoder,
                place=item.place,
            )
            largest = max(*request.context, *request.continuation)
            if largest >= known:
                raise InvalidTask(
                    f"{item.place}: the tokenizer makes token {largest}, but the model has {known} tokens: "
                    "it belongs to another model"
                )
            requests.append(request)
    return requests


def figures(ours: TaskOutcome, reference: TaskOutcome | None = None) -> dict[str, Figure]:
    """The measures of a set by name; with a reference also its own, the differences, and who changed their answers.

    Names: `accuracy` and its length-corrected forms; `word_perplexity` for last words; `changed_answers`, the share
    of items for which the two models choose differently (for last words: of which one model gets right and the other
    wrong), by `accuracy`.
    """
    found = {}
    for measure in ours.chosen:
        hits = ours.hits(measure)
        if reference is None:
            found[measure] = Figure(share(hits))
        else:
            theirs = reference.hits(measure)
            found[measure] = Figure(share(hits), share(theirs), paired_share_difference(hits, theirs))
    if ours.log_likelihoods:
        theirs_words = None if reference is None else _word_perplexity(reference.log_likelihoods)
        found["word_perplexity"] = Figure(_word_perplexity(ours.log_likelihoods), theirs_words)
    if reference is not None:
        pairs = zip(ours.chosen[ACCURACY], reference.chosen[ACCURACY], strict=True)
        found["changed_answers"] = Figure(share([mine != other for mine, other in pairs]))
    return found


def _word_perplexity(log_likelihoods: Sequence[float]) -> Mean:
    mean = mean_with_interval([-value for value in log_likelihoods], [1] * len(log_likelihoods))
    return mean.mapped(_exp)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
