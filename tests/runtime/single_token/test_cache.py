"""The cache that grows in place, against transformers' own, whatever is done to it in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicCache

from moesaic.runtime.single_token import cache as growing
from moesaic.runtime.single_token.cache import GrowingLayer, with_room

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 5)),
        st.tuples(st.just("cut"), st.integers(1, 4)),
        st.tuples(st.sampled_from(("reorder", "repeat", "select", "copy", "replace", "reset")), st.just(0)),
    ),
    min_size=1,
    max_size=30,
)


def apply(cache: Any, action: str, count: int, new: tuple[Tensor, Tensor]) -> Any:
    """One thing that is done to caches."""
    layer = cache.layers[0]
    if action == "put":
        cache.update(*(each[:, :, :count].expand(max(1, batch_of(layer)), -1, -1, -1) for each in new), 0)
    elif action == "cut" and layer.get_seq_length() > count:
        cache.crop(-count)
    elif action == "reorder":
        cache.reorder_cache(torch.arange(batch_of(layer)).flip(0))
    elif action == "repeat" and 0 < batch_of(layer) < 4:
        cache.batch_repeat_interleave(2)
    elif action == "select" and batch_of(layer) > 1:
        cache.batch_select_indices(torch.tensor([1]))
    elif action == "copy":
        return copy.deepcopy(cache)
    elif action == "replace" and layer.get_seq_length():
        layer.keys = layer.keys * 2
    elif action == "reset":
        cache.reset()
    return cache


def batch_of(layer: Any) -> int:
    return layer.keys.shape[0] if layer.is_initialized and layer.keys.numel() else 0


@given(ACTIONS, st.sampled_from((1, 3)), st.integers(0, 2**31))
def test_it_holds_what_transformers_own_holds(actions: list[tuple[str, int]], room: int, seed: int) -> None:
    """Tokens put, cut off, reordered, copied, replaced in any order: the same keys and values after each."""
    generator = torch.Generator().manual_seed(seed)
    caches: list[Any] = [DynamicCache(), DynamicCache()]
    first = [torch.randn(1, 2, 3, size, generator=generator) for size in (4, 6)]
    for cache in caches:
        cache.update(*first, 0)
    with_room(caches[0], 0)
    assert type(caches[0].layers[0]) is GrowingLayer
    before, growing.LEAST_ROOM = growing.LEAST_ROOM, room  # so that rooms are left now and then
    try:
        for action, count in actions:
            new = (torch.randn(1, 2, 5, 4, generator=generator), torch.randn(1, 2, 5, 6, generator=generator))
            caches = [apply(cache, action, count, new) for cache in caches]
            ours, theirs = (cache.layers[0] for cache in caches)
            assert ours.get_seq_length() == theirs.get_seq_length()
            if theirs.get_seq_length():
                assert torch.equal(ours.keys, theirs.keys)
                assert torch.equal(ours.values, theirs.values)
    finally:
        growing.LEAST_ROOM = before


def test_tokens_are_written_where_there_is_room() -> None:
    """The second token of many is not a copy of all that came before: the memory stays where it is."""
    cache: Any = DynamicCache()
    cache.update(torch.ones(1, 2, 8, 4), torch.ones(1, 2, 8, 4), 0)
    with_room(cache, 0)
    places = set()
    for _ in range(200):
        keys, values = cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
        places |= {keys.data_ptr(), values.data_ptr()}
    assert keys.shape == (1, 2, 208, 4)
    assert len(places) == 2


def test_a_copy_and_its_original_go_their_own_ways() -> None:
    """A prompt's cache that is copied for two continuations: neither sees the other's tokens."""
    cache: Any = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    with_room(cache, 0)
    cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)
    other = copy.deepcopy(cache)
    cache.update(torch.full((1, 1, 1, 2), 2.0), torch.full((1, 1, 1, 2), 2.0), 0)
    other.update(torch.full((1, 1, 1, 2), 3.0), torch.full((1, 1, 1, 2), 3.0), 0)
    assert cache.layers[0].keys[0, 0, :, 0].tolist() == [0, 0, 0, 1, 2]
    assert other.layers[0].keys[0, 0, :, 0].tolist() == [0, 0, 0, 1, 3]


def test_inference_mode_may_end_in_between() -> None:
    """Room made under `inference_mode` may not be written outside of it: there is new room then."""
    cache: Any = DynamicCache()
    with torch.inference_mode():
        cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
        with_room(cache, 0)
        cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)
    with torch.no_grad():
        keys, _ = cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)
    assert keys.shape[2] == 5


def test_gradients_go_through_transformers_own() -> None:
    """Keys that carry gradients are not written into."""
    cache: Any = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    with_room(cache, 0)
    new = torch.ones(1, 1, 1, 2, requires_grad=True)
    keys, _ = cache.update(new, new, 0)
    keys.sum().backward()
    assert new.grad is not None


@pytest.mark.parametrize("layers", [(), (object(),)])
def test_other_caches_stay_what_they_are(layers: tuple[Any, ...]) -> None:
    """A cache without layers of the dynamic kind is left alone."""

    class Other:
        pass

    cache: Any = Other()
    cache.layers = list(layers)
    with_room(cache, 0)
    assert [type(layer) for layer in cache.layers] == [type(layer) for layer in layers]
