"""Log likelihoods of continuations: in batches as alone, cut as said, and as a naive computation has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import moesaic
from moesaic.errors import InvalidTask
from moesaic.evaluate import likelihood
from moesaic.evaluate.likelihood import Request, answers, encode
from tests.talking import make_tokenizer
from tests.tiny import CONFIGS, build_tiny

TOKENS = st.lists(st.integers(2, 127), min_size=1, max_size=20).map(tuple)
REQUESTS = st.lists(st.builds(Request, TOKENS, TOKENS), min_size=1, max_size=8)


def naive(model: PreTrainedModel, context: tuple[int, ...], continuation: tuple[int, ...]) -> tuple[float, bool]:
    """One token after the other, without a batch, in float64."""
    total, greedy = 0.0, True
    for place, token in enumerate(continuation):
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                before = torch.tensor([[0, *continuation[:place]]])
                logits = model(input_ids=torch.tensor([context]), decoder_input_ids=before).logits[0, -1]
            else:
                logits = model(input_ids=torch.tensor([[*context, *continuation[:place]]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
    return total, greedy


@pytest.fixture(scope="module")
def models() -> Callable[[str], PreTrainedModel]:
    """`models(family)`: a tiny random model in float32, made once."""
    made: dict[str, PreTrainedModel] = {}

    def make(family: str) -> PreTrainedModel:
        if family not in made:
            made[family] = build_tiny(family).float().eval()
        return made[family]

    return make


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_batches_equal_one_at_a_time(family: str, models: Callable[[str], PreTrainedModel]) -> None:
    """Padding changes nothing: any requests in one batch have the likelihoods that they have alone, and naively."""
    model = models(family)

    @given(REQUESTS)
    @settings(max_examples=6, deadline=None, derandomize=True)
    def check(requests: list[Request]) -> None:
        together = answers(model, requests, longest=64)
        for request, found in zip(requests, together, strict=True):
            alone = answers(model, [request], longest=64)[0]
            assert found.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-4, abs=1e-3)
            assert found.tokens == alone.tokens == len(request.continuation)
            assert found.greedy == alone.greedy
        slow, greedy = naive(model, requests[0].context, requests[0].continuation)
        assert together[0].log_likelihood == pytest.approx(slow, rel=1e-4, abs=1e-3)
        assert together[0].greedy == greedy

    check()


def test_packed_models_in_batches(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed model too gives in a batch what it gives alone."""
    monkeypatch.setenv("MOESAIC_CPU_PRECISION", "exact")  # int8 rounds in one of two ways, by the number of rows
    model = moesaic.load(packed, dtype=torch.float32)

    @given(REQUESTS)
    @settings(max_examples=6, deadline=None, derandomize=True)
    def check(requests: list[Request]) -> None:
        for request, found in zip(requests, answers(model, requests, longest=64), strict=True):
            alone = answers(model, [request], longest=64)[0]
            assert found.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-4, abs=1e-3)

    check()


def test_the_size_of_batches_changes_nothing(
    models: Callable[[str], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows spread over many small batches come back in the order of the requests."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 30, (20, 2), generator=generator).tolist()
    draw = lambda length: tuple(torch.randint(2, 128, (length,), generator=generator).tolist())  # noqa: E731
    requests = [Request(draw(first), draw(second)) for first, second in lengths]
    wanted = answers(models("mixtral"), requests, longest=64)
    monkeypatch.setattr(likelihood, "BATCH_LOGITS", 128 * 70)
    found = answers(models("mixtral"), requests, longest=64)
    for one, other in zip(found, wanted, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-4)


def test_greedy_is_what_the_model_would_say(models: Callable[[str], PreTrainedModel]) -> None:
    """The continuation that the model generates is greedy; with its last token changed it is not."""
    model, context = models("mixtral"), (5, 9, 33, 71)
    said = model.generate(torch.tensor([context]), max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, 4:].tolist()
    right = Request(context, tuple(said))
    wrong = Request(context, (*said[:-1], 2 + said[-1] % 100))
    assert [answer.greedy for answer in answers(model, [right, wrong], longest=64)] == [True, False]


def test_long_contexts_lose_their_beginning(models: Callable[[str], PreTrainedModel]) -> None:
    """What does not fit is cut at the beginning of the context, and said to be; what just fits is not."""
    model = models("mixtral")
    context, continuation = tuple(range(10, 40)), (50, 51, 52)
    fits, cut = answers(model, [Request(context[:14], continuation), Request(context, continuation)], longest=16)
    assert (fits.cut, cut.cut) == (False, True)
    assert cut.log_likelihood == pytest.approx(naive(model, context[-14:], continuation)[0], rel=1e-4)


def test_long_continuations_are_scored_in_pieces(models: Callable[[str], PreTrainedModel]) -> None:
    """Every token of a continuation beyond the model's length counts once, with as much before it as fits."""
    model, continuation = models("mixtral"), tuple(range(20, 39))
    found = answers(model, [Request((7,), continuation)], longest=8)[0]
    whole = (7, *continuation)
    wanted = sum(
        naive(model, whole[max(0, min(begin + 8, 20) - 9) : begin], whole[begin : min(begin + 8, 20)])[0]
        for begin in (1, 9, 17)
    )
    assert found.tokens == 19
    assert found.log_likelihood == pytest.approx(wanted, rel=1e-4)


def test_rows_that_differ_at_their_end_are_read_once(models: Callable[[str], PreTrainedModel]) -> None:
    """Answers of one token after the same text cost one row."""
    steps: list[int] = []

    class Counter:
        def start(self, what: str, total: int) -> None:
            """Not asked."""

        def advance(self, count: int) -> None:
            steps.append(count)

    requests = [Request((3, 4, 5), (token,)) for token in (6, 7, 8)]
    found = answers(models("mixtral"), requests, longest=64, progress=Counter())
    assert sum(steps) == 1
    for request, answer in zip(requests, found, strict=True):
        wanted = naive(models("mixtral"), request.context, request.continuation)[0]
        assert answer.log_likelihood == pytest.approx(wanted, rel=1e-4)


def test_encoding() -> None:
    """The space belongs to the continuation; both kinds of model get the same tokens from a tokenizer of letters."""
    tokenizer = make_tokenizer()
    for encoder_decoder in (False, True):
        found = encode(tokenizer, "ab", "cd", encoder_decoder=encoder_decoder, place="here")
        assert tokenizer.decode(found.context) == "ab"
        assert tokenizer.decode(found.continuation) == " cd"


def test_an_empty_context_becomes_the_beginning_of_a_text() -> None:
    """Without a context there is the token for a beginning, or for an end, or an error."""
    tokenizer = make_tokenizer()
    assert encode(tokenizer, "", "cd", encoder_decoder=False, place="here").context == (tokenizer.eos_token_id,)
    tokenizer.eos_token = None
    with pytest.raises(InvalidTask, match="here: nothing to read"):
        encode(tokenizer, "", "cd", encoder_decoder=False, place="here")


def test_a_continuation_without_tokens_is_refused() -> None:
    """A tokenizer that swallows a text is an error with its place, not a likelihood of 1."""
    from tokenizers import Tokenizer, models  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    mute = Tokenizer(models.BPE({"a": 0}, []))  # drops what it does not know
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=mute, bos_token="a")
    with pytest.raises(InvalidTask, match=r"x\.jsonl, line 3: the tokenizer makes no tokens of ' b'"):
        encode(tokenizer, "a", "b", encoder_decoder=False, place="x.jsonl, line 3")
