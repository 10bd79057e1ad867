"""Perplexity, and how far a model's next-token distributions are from the full-precision model's.

Encoder-decoder models read the first half of each window and are scored on the second half, or on as much of its end
as no earlier window scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from moesaic.errors import CorruptFile
from moesaic.progress import SILENT, Progress
from moesaic.text import Window

_ROWS = 256  # token positions whose distributions are compared at a time
_BATCH_LOGITS = 1 << 25  # 128 MB in float32


@dataclass(frozen=True)
class Mean:
    """A mean over tokens, with a 95 % interval from the spread between windows.

    Attributes:
        value: the mean.
        low, high: the interval; equal to `value` when there is only one window.
    """

    value: float
    low: float
    high: float

    def mapped(self, function: Callable[[float], float]) -> Mean:
        """The same for an increasing function of the mean, such as `exp` for perplexity."""
        return Mean(function(self.value), function(self.low), function(self.high))


@dataclass(frozen=True)
class Quality:
    """What `measure_quality` found.

    Attributes:
        tokens: number of scored tokens.
        windows: number of windows.
        perplexity: `exp` of the mean negative log likelihood of a token.
        perplexity_reference: the reference model's, None without one.
        kl: mean `KL(reference || model)` of next-token distributions, in nats; None without a reference.
        top1_agreement: share of tokens for which both models rank the same token first; None without a reference.
    """

    tokens: int
    windows: int
    perplexity: Mean
    perplexity_reference: Mean | None
    kl: Mean | None
    top1_agreement: Mean | None


@dataclass(frozen=True)
class Scored:
    """Sums over the scored tokens of every window; windows of several texts can be put together with `+`.

    Attributes:
        counts: scored tokens.
        nll: negative log likelihoods.
        reference_nll: the reference's; this and the next two are empty without a reference.
        kl: divergences.
        agree: tokens that both models rank first.
    """

    counts: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    reference_nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[float] = field(default_factory=list)

    def __add__(self, other: Scored) -> Scored:
        return Scored(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def quality(self) -> Quality:
        """Means with their intervals."""

        def mean(sums: list[float]) -> Mean | None:
            return mean_with_interval(sums, self.counts) if sums else None

        reference = mean(self.reference_nll)
        return Quality(
            tokens=sum(self.counts),
            windows=len(self.counts),
            perplexity=mean_with_interval(self.nll, self.counts).mapped(math.exp),
            perplexity_reference=None if reference is None else reference.mapped(math.exp),
            kl=mean(self.kl),
            top1_agreement=mean(self.agree),
        )


def measure_quality(
    model: PreTrainedModel,
    windows: list[Window],
    *,
    reference: PreTrainedModel | None = None,
    progress: Progress = SILENT,
    after: Callable[[list[Window]], None] | None = None,
) -> Quality:
    """Score every window with the model, and with the reference if there is one; see `score_windows`."""
    progress.start("evaluate", sum(window.scored for window in windows))
    return score_windows(model, windows, reference=reference, progress=progress, after=after).quality()


def score_windows(
    model: PreTrainedModel,
    windows: list[Window],
    *,
    reference: PreTrainedModel | None = None,
    progress: Progress = SILENT,
    after: Callable[[list[Window]], None] | None = None,
) -> Scored:
    """Score every window with the model, and with the reference if there is one.

    Args:
        model: causal or encoder-decoder language model.
        windows: what to read.
        reference: a model of the same vocabulary.
        progress: told of every scored token.
        after: called with each batch of windows when both models have read it.

    Raises:
        CorruptFile: the two models have different vocabularies.
    """
    sums = Scored()
    for batch in batches(windows, vocabulary=model.get_input_embeddings().num_embeddings):
        found = scored_logits(model, batch)
        wanted = found if reference is None else scored_logits(reference, batch)
        for (logits, targets), (expected, _) in zip(found, wanted, strict=True):
            sums.counts.append(len(targets))
            sums.nll.append(_nll(logits, targets))
            if reference is not None:
                _check_alike(expected, logits)
                sums.reference_nll.append(_nll(expected, targets))
                sums.kl.append(_divergence(expected, logits))
                sums.agree.append(float((expected.argmax(-1) == logits.argmax(-1)).sum()))
        if after is not None:
            after(batch)
        progress.advance(sum(window.scored for window in batch))
    return sums


def batches(windows: list[Window], *, vocabulary: int) -> Iterator[list[Window]]:
    """Runs of windows of the same length, so many at a time that their logits stay within `_BATCH_LOGITS` numbers."""
    batch: list[Window] = []
    for window in windows:
        largest = max(1, _BATCH_LOGITS // (vocabulary * len(window.tokens)))
        if batch and (len(window.tokens) != len(batch[0].tokens) or len(batch) >= largest):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


@torch.inference_mode()
def scored_logits(model: PreTrainedModel, batch: list[Window]) -> list[tuple[Tensor, Tensor]]:
    """Logits of the scored tokens of each window, and these tokens: `[scored, vocabulary]`, `[scored]`."""
    tokens = torch.tensor([window.tokens for window in batch], device=model.device)
    if model.config.is_encoder_decoder:
        half = max(1, tokens.shape[1] // 2)
        labels = tokens[:, half:]
        start = labels.new_full((len(batch), 1), int(model.config.decoder_start_token_id or 0))
        decoder = torch.cat([start, labels[:, :-1]], dim=1)
        logits = model(input_ids=tokens[:, :half], decoder_input_ids=decoder, use_cache=False).logits
    else:
        labels = tokens[:, 1:]
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    found = []
    for row, window in enumerate(batch):
        scored = min(window.scored, labels.shape[1])
        found.append((logits[row, -scored:].float(), labels[row, -scored:]))
    return found


def _check_alike(wanted: Tensor, found: Tensor) -> None:
    if wanted.shape != found.shape:
        raise CorruptFile(f"the models have different vocabularies ({found.shape[-1]} and {wanted.shape[-1]} entries)")


def mean_with_interval(sums: list[float], counts: list[int]) -> Mean:
    """Mean over tokens and its 95 % interval, windows being the independent samples (ratio estimator).

    Args:
        sums: of the measure over the tokens of each window.
        counts: tokens of each window.
    """
    total = sum(counts)
    mean = sum(sums) / total
    number = len(sums)
    if number < 2:
        return Mean(mean, mean, mean)
    residuals = (each - mean * count for each, count in zip(sums, counts, strict=True))
    variance = sum(residual**2 for residual in residuals) * number / (number - 1) / total**2
    half = 1.96 * math.sqrt(variance)
    return Mean(mean, mean - half, mean + half)


def _nll(logits: Tensor, targets: Tensor) -> float:
    return float(functional.cross_entropy(logits, targets, reduction="sum"))


def _divergence(wanted: Tensor, found: Tensor) -> float:
    """Sum over positions of `KL(wanted || found)` from logits `[positions, vocabulary]`."""
    total = 0.0
    for start in range(0, len(wanted), _ROWS):
        log_p = wanted[start : start + _ROWS].log_softmax(-1)
        log_q = found[start : start + _ROWS].log_softmax(-1)
        total += float(functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
    return total
