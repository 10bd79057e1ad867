"""How likely a model finds a continuation after a context: the one question of all evaluation sets here.

Many requests are run in one batch. Rows are padded on the right, where causal attention cannot see the padding from
the row's own tokens; encoders are told of it by a mask. A padded token's own output is not used. Requests that differ
in their last token only (yes and no after the same text) share one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.errors import InvalidTask
from moesaic.progress import SILENT, Progress

BATCH_LOGITS = 1 << 25  # 128 MB in float32


@dataclass(frozen=True)
class Request:
    """A context and what may follow it, as token ids; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What the model thinks of a continuation.

    Attributes:
        log_likelihood: of all its tokens together, in nats.
        tokens: how many these are.
        greedy: each is the model's first choice at its place.
        cut: the context did not fit into the model and lost its beginning.
    """

    log_likelihood: float
    tokens: int
    greedy: bool
    cut: bool


@dataclass(frozen=True)
class _Row:
    """What one row of a batch reads: `decoder` is empty for causal models, whose `read` goes up to the last target."""

    read: tuple[int, ...]
    decoder: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Part:
    """The end of a row that answers (a part of) request number `request`."""

    request: int
    targets: tuple[int, ...]


def encode(tokenizer: Any, context: str, continuation: str, *, encoder_decoder: bool, place: str) -> Request:
    """Tokens of `context`, a space and `continuation`, cut where the continuation begins.

    For causal models both are encoded together, since the tokens at the seam depend on both sides, and the tokens
    beyond the number of those of the context alone are the continuation: the convention of lm-eval. The tokenizer
    puts special tokens in front where that is its way; an empty context becomes the token for the beginning of a text.

    Raises:
        InvalidTask: the continuation has no tokens.
    """
    continuation = f" {continuation}"
    if encoder_decoder:
        before = tokenizer.encode(context)
        after = tokenizer.encode(continuation, add_special_tokens=False)
    elif context:
        before = tokenizer.encode(context)
        after = tokenizer.encode(context + continuation)[len(before) :]
    else:
        before, after = [], tokenizer.encode(continuation, add_special_tokens=False)
    if not after:
        raise InvalidTask(f"{place}: the tokenizer makes no tokens of {continuation!r}")
    return Request(tuple(before) or (_first_token(tokenizer, place),), tuple(after))


def _first_token(tokenizer: Any, place: str) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InvalidTask(
        f"{place}: nothing to read before the continuation, and the tokenizer has no token for a beginning"
    )


def answers(
    model: PreTrainedModel, requests: list[Request], *, longest: int, progress: Progress = SILENT
) -> list[Answer]:
    """Score requests, in batches.

    Args:
        model: causal or encoder-decoder language model.
        requests: what to score.
        longest: tokens that the model can read at once. What is longer loses the beginning of its context; of a
            continuation that does not fit by itself every token is scored, in pieces, with as much before it as fits.
        progress: told of every row.
    """
    rows = _rows(model, requests, longest)
    sums, greedy = [0.0] * len(requests), [True] * len(requests)
    for batch in _batches(list(rows), vocabulary=model.get_input_embeddings().num_embeddings):
        for row, logits in zip(batch, _logits(model, batch), strict=True):
            for part in rows[row]:
                likelihood, first = _score(logits, part.targets)
                sums[part.request] += likelihood
                greedy[part.request] &= first
        progress.advance(len(batch))
    return [
        Answer(sums[i], len(request.continuation), greedy[i], _is_cut(model, request, longest))
        for i, request in enumerate(requests)
    ]


def _is_cut(model: PreTrainedModel, request: Request, longest: int) -> bool:
    after = 0 if model.config.is_encoder_decoder else len(request.continuation) - 1
    return len(request.context) + after > longest


def _rows(model: PreTrainedModel, requests: list[Request], longest: int) -> dict[_Row, list[_Part]]:
    """What has to be read, each row once, with the parts of requests that its end answers."""
    rows: dict[_Row, list[_Part]] = {}
    start = int(getattr(model.config, "decoder_start_token_id", None) or 0)
    for number, request in enumerate(requests):
        if model.config.is_encoder_decoder:
            row = _Row(request.context[-longest:], (start, *request.continuation[:-1]))
            rows.setdefault(row, []).append(_Part(number, request.continuation))
            continue
        whole = request.context + request.continuation
        for begin in range(len(request.context), len(whole), longest):
            end = min(begin + longest, len(whole))
            row = _Row(whole[max(0, end - 1 - longest) : end - 1])
            rows.setdefault(row, []).append(_Part(number, whole[begin:end]))
    return rows


def _batches(rows: list[_Row], *, vocabulary: int) -> Iterator[list[_Row]]:
    """The longest first, rows of like length together, so many that their logits stay within `BATCH_LOGITS` numbers."""
    rows = sorted(rows, key=lambda row: (-len(row.decoder), -len(row.read)))
    while rows:
        length = max(len(row.read) for row in rows[:1]) + len(rows[0].decoder)
        size = max(1, BATCH_LOGITS // (vocabulary * length))
        yield rows[:size]
        rows = rows[size:]


@torch.inference_mode()
def _logits(model: PreTrainedModel, batch: list[_Row]) -> Iterator[Tensor]:
    """Logits of each row without its padding, `[length, vocabulary]`; of the decoder where there is one."""
    tokens, mask = _padded([row.read for row in batch], model.device)
    if not batch[0].decoder:
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        return (logits[i, : len(row.read)] for i, row in enumerate(batch))
    decoder, seen = _padded([row.decoder for row in batch], model.device)
    logits = model(
        input_ids=tokens,
        attention_mask=mask,
        decoder_input_ids=decoder,
        decoder_attention_mask=seen,
        use_cache=False,
    ).logits
    return (logits[i, : len(row.decoder)] for i, row in enumerate(batch))


def _padded(sequences: list[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """`[rows, longest]` tokens, padded on the right with token 0, and the mask that is 1 on the tokens."""
    length = max(map(len, sequences))
    tokens = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return tokens.to(device), mask.to(device)


def _score(logits: Tensor, targets: tuple[int, ...]) -> tuple[float, bool]:
    """Log likelihood of the targets at the end of `logits` `[length, vocabulary]`, and whether each comes first."""
    wanted = torch.tensor(targets, device=logits.device)
    ends = logits[-len(targets) :].float()
    found = ends.log_softmax(-1).gather(1, wanted[:, None])
    return float(found.double().sum()), bool((ends.argmax(-1) == wanted).all())
