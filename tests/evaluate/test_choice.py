"""Which option is taken, with and without regard to its length."""

from __future__ import annotations

from moesaic.evaluate.choice import choices
from moesaic.evaluate.likelihood import Answer
from moesaic.evaluate.tasks import CHOICE, EvaluationSet, Item


def made(*texts: str, one_continuation: bool = False) -> EvaluationSet:
    """A set with one item of those options."""
    item = Item("made up", ("",) * len(texts), texts, 0)
    return EvaluationSet("x", "x.jsonl", CHOICE, (item,), one_continuation)


def answers(*pairs: tuple[float, int]) -> list[list[Answer]]:
    """Answers of log likelihood and tokens."""
    return [[Answer(value, tokens, False, False) for value, tokens in pairs]]


def test_lengths_decide_by_hand() -> None:
    """-4 over 2 bytes and 1 token, -6 over 6 bytes and 1, -7 over 5 bytes and 3: each measure takes another."""
    found = choices(made("ab", "abcdef", "abcde"), answers((-4, 1), (-6, 1), (-7, 3)))
    assert found == {"accuracy": [0], "accuracy_per_byte": [1], "accuracy_per_token": [2]}


def test_bytes_not_characters() -> None:
    """A letter of two bytes counts twice: -6 over 4 bytes beats -4 over 2, which it would not over 2 characters."""
    assert choices(made("ab", "üü"), answers((-4, 1), (-6, 1)))["accuracy_per_byte"] == [1]


def test_the_first_of_equals() -> None:
    """Equally likely options leave the first."""
    assert choices(made("a", "b"), answers((-2, 1), (-2, 1)))["accuracy"] == [0]


def test_one_continuation_has_no_length() -> None:
    """Options that differ in their context only have one measure, since all lengths are the same."""
    assert choices(made("a", "a", one_continuation=True), answers((-2, 1), (-1, 1))) == {"accuracy": [1]}
