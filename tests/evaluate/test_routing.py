"""Routing agreement, against sets of Python and the routers' own logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

import moesaic
from moesaic.errors import UnsupportedModel
from moesaic.evaluate.quality import measure_quality
from moesaic.evaluate.routing import RoutingComparison, RoutingRecorder, overlaps, same_sets
from moesaic.families import MoeLayer, find_moe_layers
from moesaic.text import Window, windows
from tests.tiny import CONFIGS, build_tiny

FAMILIES = sorted(CONFIGS)
TOKENS = [(7 * place * place + 3 * place) % 126 + 2 for place in range(150)]

PICKS = st.permutations(range(6)).map(lambda order: order[:3])


def layers_of(model: PreTrainedModel) -> list[MoeLayer]:
    """The expert layers of an unpacked model."""
    return find_moe_layers(model, model.config.model_type)


def read(model: PreTrainedModel, tokens: Tensor) -> None:
    """Let a model read `[rows, length]` tokens."""
    more = {"decoder_input_ids": tokens[:, :9]} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False, **more)


@given(st.lists(st.tuples(PICKS, PICKS), min_size=1, max_size=10))
@settings(max_examples=50, deadline=None)
def test_the_measures_are_those_of_sets(pairs: list[tuple[list[int], list[int]]]) -> None:
    """Order does not matter; the overlap is |A and B| / k."""
    ours, theirs = torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])
    assert same_sets(ours, theirs).tolist() == [set(a) == set(b) for a, b in pairs]
    assert overlaps(ours, theirs).tolist() == pytest.approx([len(set(a) & set(b)) / 3 for a, b in pairs])


def test_another_number_of_experts_is_never_the_same_set() -> None:
    """One model picks two experts, the other one: no set is the same, and the overlap is of the reference's experts."""
    ours, theirs = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0], [1]])
    assert same_sets(ours, theirs).tolist() == [False, False]
    assert overlaps(ours, theirs).tolist() == [1, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_recorded(family: str) -> None:
    """Every layer of every architecture gives its k experts for each token, and nothing is left hooked."""
    model = build_tiny(family).float().eval()
    layers = layers_of(model)
    with RoutingRecorder(model, layers) as recorder:
        read(model, torch.tensor([TOKENS[:16], TOKENS[16:32]]))
        found = recorder.take()
        assert recorder.take() == {}
    assert list(found) == [layer.name for layer in layers]
    one = family == "switch_transformers"
    for name, picks in found.items():
        assert picks.shape == (18 if name.startswith("decoder") else 32, 1 if one else 2)
        assert 0 <= int(picks.min()) <= int(picks.max()) < 8
        assert all(len(set(row)) == len(row) for row in picks.tolist())
    read(model, torch.tensor([TOKENS[:16]]))
    assert recorder.take() == {}


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen2_moe"])
def test_the_experts_are_those_of_the_largest_router_logits(family: str) -> None:
    """Where the router is a plain top-k, the recorded experts are the top of the logits that transformers returns."""
    model = build_tiny(family).float().eval()
    tokens = torch.tensor([TOKENS[:20]])
    with RoutingRecorder(model, layers_of(model)) as recorder, torch.inference_mode():
        logits = model(input_ids=tokens, use_cache=False, output_router_logits=True).router_logits
        found = recorder.take()
    for picks, wanted in zip(found.values(), logits, strict=True):
        assert picks.sort(-1).values.tolist() == wanted.topk(2).indices.sort(-1).values.tolist()


def test_a_layer_that_is_called_otherwise() -> None:
    """An experts module that is not told the experts is refused by name, not counted as something."""
    model = build_tiny("mixtral")
    layer = layers_of(model)[0]
    with RoutingRecorder(model, [layer]), pytest.raises(UnsupportedModel, match=layer.name):
        model.get_submodule(layer.name)(torch.zeros(1, 64))


def test_a_token_beyond_the_capacity_has_no_expert() -> None:
    """Switch Transformers drop tokens; a dropped one is told apart from every expert."""
    model = build_tiny("switch_transformers", expert_capacity=1).float().eval()
    with RoutingRecorder(model, layers_of(model)) as recorder:
        read(model, torch.tensor([TOKENS[:30]]))
        picks = recorder.take()[layers_of(model)[0].name]
    assert int((picks == 8).sum()) >= 30 - 8
    assert torch.bincount(picks.flatten(), minlength=9)[:8].max() == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_models_beside_their_originals(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every architecture 16 bits agree on everything; low widths change some sets, as sets of Python count them."""
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")
    source = tiny_checkpoint(family)
    original = moesaic.runtime.hf.open_any(source)
    layers = layers_of(original)
    cut = windows(TOKENS, length=32, stride=32)
    for bits, exact in ((16, True), (1.5, False)):
        how = moesaic.CompressOptions(bits=bits, other_bits=16 if exact else 2)
        model = moesaic.load(moesaic.compress(source, tmp_path / str(bits), how))
        with RoutingComparison(model, original, layers) as comparison:
            measure_quality(model, cut, reference=original, after=comparison.add)
        overall, each = comparison.overall(), comparison.layers()
        assert list(each) == [layer.name for layer in layers]
        assert overall.tokens == sum(layer.tokens for layer in each.values())
        for agreement in (overall, *each.values()):
            assert 0 <= agreement.same_set.low <= agreement.same_set.value <= agreement.same_set.high <= 1
            assert agreement.same_set.value <= agreement.overlap.value
        if exact:
            assert overall.same_set.value == overall.overlap.value == 1
        else:
            assert overall.same_set.value < 1
            naive = naive_agreement(model, original, layers, cut)
            found = {name: (one.same_set.value, one.overlap.value) for name, one in each.items()}
            for name, wanted in naive.items():
                assert found[name] == pytest.approx(wanted, abs=0.02)  # a batch may round near ties otherwise


def naive_agreement(
    model: PreTrainedModel, original: PreTrainedModel, layers: list[MoeLayer], cut: list[Window]
) -> dict[str, tuple[float, float]]:
    """Share of equal sets and mean overlap of each layer, window by window and token by token."""
    pairs: dict[str, list[tuple[set[int], set[int]]]] = {layer.name: [] for layer in layers}
    for window in cut:
        taken = []
        for each in (model, original):
            with RoutingRecorder(each, layers) as recorder, torch.inference_mode():
                tokens = torch.tensor([window.tokens])
                if each.config.is_encoder_decoder:
                    half = max(1, len(window.tokens) // 2)
                    decoder = torch.tensor([[0, *window.tokens[half:-1]]])
                    each(input_ids=tokens[:, :half], decoder_input_ids=decoder, use_cache=False)
                else:
                    each(input_ids=tokens, use_cache=False)
                taken.append(recorder.take())
        for name in pairs:
            rows = list(zip(taken[0][name].tolist(), taken[1][name].tolist(), strict=True))
            pairs[name] += [(set(a), set(b)) for a, b in (rows if model.config.is_encoder_decoder else rows[:-1])]
    return {
        name: (
            sum(a == b for a, b in found) / len(found),
            sum(len(a & b) / len(b) for a, b in found) / len(found),
        )
        for name, found in pairs.items()
    }


def test_overlapping_windows_count_no_token_twice(source: Path, packed: Path) -> None:
    """With a stride below the window the routers are compared on the scored tokens only."""
    model, original = moesaic.load(packed), moesaic.runtime.hf.open_any(source)
    with RoutingComparison(model, original, layers_of(original)) as comparison:
        found = measure_quality(model, windows(TOKENS, length=32, stride=8), reference=original, after=comparison.add)
    assert all(layer.tokens == found.tokens == 149 for layer in comparison.layers().values())
