"""Causal policies on the trained demo model: the same token and prefix get the same experts, however they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import CompressOptions, compress, load
from moesaic.fit.differentiable import differentiable
from moesaic.fit.mask_routers import Training
from moesaic.fit.run import FitOptions, fit
from moesaic.fit.text import token_windows, tokenized
from moesaic.prune import POLICIES, Pruning, Routed
from moesaic.runtime.hf import open_tokenizer
from moesaic.runtime.skipping import attach, detach, skipping_of
from moesaic.text import bundled_calibration_text

DEMO = Path(__file__).parents[2] / "models" / "demo"
CAUSAL = [name for name, made in POLICIES.items() if made.causal]
LENGTH, PREFIX = 40, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model at 2.5 bits."""
    return compress(DEMO, tmp_path_factory.mktemp("demo") / "packed", CompressOptions(bits=2.5, rule="max_var"))


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """Text of the kind that the model knows."""
    tokens = tokenized(open_tokenizer(DEMO), bundled_calibration_text()[:40_000])
    return token_windows(tokens, length=LENGTH, limit=24 * LENGTH, least=16, seed=0, vocabulary=10**6)


@pytest.fixture(scope="module")
def policies(folder: Path, windows: Tensor) -> dict[str, Pruning]:
    """Every causal policy, calibrated or trained for 75 %."""
    model = load(folder, dtype=torch.float32).requires_grad_(False)
    found = {}
    with differentiable(model, 1 << 30):
        for name in CAUSAL:
            options = FitOptions(name, 0.75, training=Training(layer_steps=20))
            found[name] = fit(model, windows, options.make_policy(), options)
    return found


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    """In double precision, so that rounding decides nothing."""
    return load(folder, dtype=torch.float64)


@pytest.fixture
def decisions(model: PreTrainedModel, policies: dict[str, Pruning]) -> Iterator[Callable[..., list[Tensor]]]:
    """`decisions(name, *calls)`: what every layer decided in some calls of the model, `[tokens, k]` a layer."""

    def watch(name: str, *calls: Callable[[], object]) -> list[Tensor]:
        skipping = attach(model, policies[name])
        inner, seen = skipping.routing, {}
        assert inner is not None

        def routing(layer: str, routed: Routed) -> Tensor:
            chosen = inner(layer, routed)
            seen.setdefault(layer, []).append(chosen.clone())
            return chosen

        skipping.routing = routing
        with torch.inference_mode():
            for call in calls:
                call()
        return [torch.cat(parts) for parts in seen.values()]

    yield watch
    detach(model)


@pytest.mark.parametrize("name", CAUSAL)
def test_prefill_cache_and_padding_decide_alike(
    name: str, model: PreTrainedModel, windows: Tensor, decisions: Callable[..., list[Tensor]]
) -> None:
    """One pass over a text, token by token with a cache, and beside a shorter text in a padded batch: same experts."""
    tokens = windows[:1]
    whole = decisions(name, lambda: model(tokens))
    assert 0.5 < float(torch.stack(whole).float().mean()) < 0.95

    def with_cache() -> None:
        cache = model(tokens[:, :PREFIX], use_cache=True).past_key_values
        for place in range(PREFIX, LENGTH):
            model(tokens[:, place : place + 1], past_key_values=cache, use_cache=True)

    assert all(torch.equal(a, b) for a, b in zip(decisions(name, with_cache), whole, strict=True))
    short = windows[1:2, : LENGTH - 9]
    alone = decisions(name, lambda: model(short))
    batch = torch.cat([tokens, torch.cat([torch.zeros(1, 9, dtype=torch.int64), short], dim=1)])
    mask = torch.ones_like(batch)
    mask[1, :9] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    together = decisions(name, lambda: model(batch, attention_mask=mask, position_ids=places))
    for layer, found in enumerate(together):
        each = found.view(2, LENGTH, -1)
        assert torch.equal(each[0], whole[layer])
        assert torch.equal(each[1, 9:], alone[layer])


@pytest.mark.parametrize("name", CAUSAL)
def test_turned_off_the_demo_model_is_itself(
    name: str, model: PreTrainedModel, policies: dict[str, Pruning], windows: Tensor
) -> None:
    """After a policy was at work and was taken out, no bit of the outputs differs from before."""
    with torch.inference_mode():
        wanted = model(windows[:2]).logits
        attach(model, policies[name])
        assert not torch.equal(model(windows[:2]).logits, wanted)
        detach(model)
        assert skipping_of(model) is None
        assert torch.equal(model(windows[:2]).logits, wanted)
