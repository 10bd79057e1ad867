"""Perplexity, divergence and agreement, against computations that a page of paper would hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moesaic
from moesaic.errors import CorruptFile
from moesaic.evaluate.quality import mean_with_interval, measure_quality, scored_logits
from moesaic.runtime.hf import open_any
from moesaic.text import Window, windows
from tests.tiny import build_tiny

TOKENS = [(7 * place * place + 3 * place) % 126 + 2 for place in range(150)]


def log_probabilities(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """`[tokens, vocabulary]`, in float64, of a causal model that reads these tokens and nothing else."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)


@pytest.fixture(scope="module")
def models(source: Path, packed: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The packed model and the full-precision one."""
    return moesaic.load(packed, dtype=torch.float32), open_any(source).float()


@pytest.mark.parametrize("stride", [16, 64])
def test_causal_measures_equal_naive_ones(
    models: tuple[torch.nn.Module, torch.nn.Module], stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perplexity, KL and agreement are those of a token-by-token computation."""
    monkeypatch.setenv("MOESAIC_CPU_PRECISION", "exact")  # int8 rounds in one of two ways, by the number of rows
    model, reference = models
    found = measure_quality(model, windows(TOKENS, length=64, stride=stride), reference=reference)

    losses, reference_losses, divergences, agreements = [], [], [], []
    scored_to = 0
    for start in range(0, len(TOKENS), stride):
        part = TOKENS[start : start + 64]
        ours, theirs = log_probabilities(model, part), log_probabilities(reference, part)
        for place in range(1, len(part)):
            if start + place <= scored_to:
                continue
            losses.append(-float(ours[place - 1, part[place]]))
            reference_losses.append(-float(theirs[place - 1, part[place]]))
            p, q = theirs[place - 1], ours[place - 1]
            divergences.append(float(sum(p.exp() * (p - q))))
            agreements.append(int(p.argmax()) == int(q.argmax()))
        scored_to = start + len(part) - 1
        if start + 64 >= len(TOKENS):
            break

    assert found.tokens == len(losses)
    assert found.perplexity.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert found.perplexity_reference is not None
    assert found.perplexity_reference.value == pytest.approx(math.exp(sum(reference_losses) / len(losses)), rel=1e-4)
    assert found.kl is not None
    assert found.kl.value == pytest.approx(sum(divergences) / len(losses), rel=1e-3)
    assert found.top1_agreement is not None
    assert found.top1_agreement.value == pytest.approx(sum(agreements) / len(losses), abs=0.011)


def test_a_model_agrees_with_itself(packed: Path) -> None:
    """KL is zero and agreement is one for a model against itself."""
    model = moesaic.load(packed)
    found = measure_quality(model, windows(TOKENS, length=32, stride=32), reference=model)
    assert found.kl is not None
    assert found.top1_agreement is not None
    assert found.kl.value == found.kl.low == found.kl.high == 0
    assert found.top1_agreement.value == 1
    assert found.perplexity == found.perplexity_reference


def test_no_reference_no_comparison(packed: Path) -> None:
    """Without a reference there are no figures of comparison."""
    found = measure_quality(moesaic.load(packed), windows(TOKENS, length=32, stride=32))
    assert found.perplexity_reference is found.kl is found.top1_agreement is None


def test_another_vocabulary_is_refused(packed: Path) -> None:
    """Distributions over different vocabularies cannot be compared."""
    other = build_tiny("mixtral", vocab_size=160)
    with pytest.raises(CorruptFile, match="vocabularies"):
        measure_quality(moesaic.load(packed), windows(TOKENS, length=32, stride=32), reference=other)


def test_encoder_decoders_are_scored_on_the_second_half(switch: Path) -> None:
    """An encoder-decoder reads the first half of a window and predicts the second, one token after the other."""
    model = open_any(switch)
    window = Window(tuple(TOKENS[:33]), 32)
    found = measure_quality(model, [window], reference=model)
    encoder, answer = torch.tensor([TOKENS[:16]]), TOKENS[16:33]
    losses = []
    for place, token in enumerate(answer):
        decoder = torch.tensor([[0, *answer[:place]]])
        with torch.no_grad():
            logits = model(input_ids=encoder, decoder_input_ids=decoder).logits[0, -1]
        losses.append(-float(logits.double().log_softmax(-1)[token]))
    assert found.tokens == len(answer)
    assert found.perplexity.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=0.02)


def test_encoder_decoders_score_no_token_twice(switch: Path) -> None:
    """With a stride of half a window, the second halves lie end to end, also where the text runs out."""
    model = open_any(switch)
    scored = [token for window in windows(TOKENS[:75], length=20, stride=10) for token in scored_tokens(model, window)]
    assert scored == TOKENS[10:75]


def scored_tokens(model: torch.nn.Module, window: Window) -> list[int]:
    """The tokens of a window that are scored."""
    return scored_logits(model, [window])[0][1].tolist()


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 50)), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_mean_is_over_tokens_and_inside_its_interval(windows: list[tuple[float, int]]) -> None:
    """The mean weighs windows by their tokens; the interval surrounds it."""
    sums, counts = [total for total, _ in windows], [count for _, count in windows]
    mean = mean_with_interval(sums, counts)
    assert mean.value == pytest.approx(sum(sums) / sum(counts))
    assert mean.low <= mean.value <= mean.high
    assert len(windows) > 1 or mean.low == mean.high


def test_the_interval_of_known_windows() -> None:
    """Two windows of ten tokens with means 1 and 3: mean 2, standard error 1."""
    mean = mean_with_interval([10.0, 30.0], [10, 10])
    assert (mean.value, mean.low, mean.high) == pytest.approx((2, 2 - 1.96, 2 + 1.96))
    assert mean.mapped(math.exp).low == pytest.approx(math.exp(2 - 1.96))
