"""Multiple choice: the option that the model finds likeliest, with and without regard to its length."""

from __future__ import annotations

from moesaic.evaluate.likelihood import Answer
from moesaic.evaluate.tasks import EvaluationSet, Item

ACCURACY = "accuracy"
PER_BYTE = "accuracy_per_byte"
PER_TOKEN = "accuracy_per_token"

MEASURES = (ACCURACY, PER_BYTE, PER_TOKEN)


def choices(questions: EvaluationSet, found: list[list[Answer]]) -> dict[str, list[int]]:
    """The option that is chosen for each item, by measure; the first one where several are equally likely.

    `accuracy` takes the likelihood of the whole option (`acc` of lm-eval), `accuracy_per_byte` that of a byte of its
    UTF-8 text without the space before it (`acc_bytes`; `acc_norm` counts characters, which is the same in ASCII),
    `accuracy_per_token` that of a token. Where the options of an item share their continuation there is no length to
    correct, and only `accuracy` is given.

    Args:
        questions: a set of the kind `choice`.
        found: answers of each item, one for each option.
    """
    measures = [ACCURACY] if questions.one_continuation else list(MEASURES)
    return {
        measure: [_best(item, answers, measure) for item, answers in zip(questions.items, found, strict=True)]
        for measure in measures
    }


def _best(item: Item, answers: list[Answer], measure: str) -> int:
    pairs = zip(item.continuations, answers, strict=True)
    values = [answer.log_likelihood / _length(measure, text, answer) for text, answer in pairs]
    return values.index(max(values))


def _length(measure: str, text: str, answer: Answer) -> int:
    """By what the log likelihood of an option is divided."""
    if measure == PER_BYTE:
        return len(text.encode())
    return answer.tokens if measure == PER_TOKEN else 1
