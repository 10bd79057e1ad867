"""All decoder layers of a model as one call; `test_decoder.py` compares what it computes."""

from __future__ import annotations

import pytest
import torch

from moesaic.kernels import cpu
from moesaic.runtime.single_token import stack
from tests.runtime.single_token.test_decoder import Load, decode

pytestmark = pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")


def test_all_layers_are_one_call(packed: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every layer goes to its end; a hook on one of them makes each a call of its own, with the same bits."""
    model = packed("mixtral")
    calls: list[int] = []
    run_layers = stack.run_layers
    monkeypatch.setattr(stack, "run_layers", lambda *args: calls.append(len(args[0])) or run_layers(*args))
    found, _ = decode(model)
    assert calls == [2] * 11
    handle = model.model.layers[1].register_forward_hook(lambda *_: None)
    assert torch.equal(decode(model)[0], found)
    handle.remove()
    _, cache = decode(model)
    calls.clear()
    given = {"past_key_values": cache, "use_cache": True}
    with torch.inference_mode():
        states = model(torch.tensor([[5]]), output_hidden_states=True, **given).hidden_states
        assert len(states) == 3
        assert not calls
        assert isinstance(model.model(torch.tensor([[5]]), return_dict=False, **given), tuple)
        embedded = model.get_input_embeddings()(torch.tensor([[5]]))
        assert torch.isfinite(model(inputs_embeds=embedded, **given).logits).all()
    assert not calls


def test_configurations_that_say_less(packed: Load) -> None:
    """Architectures with the same model have configurations without some of these settings: that is no setting."""
    model = packed("mixtral")
    _, cache = decode(model)
    del model.config.output_router_logits
    with torch.inference_mode():
        found = model.model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)
    assert torch.isfinite(found.last_hidden_state).all()


def test_masks_of_another_shape_are_transformers_business(packed: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of all sequences at once, with as many dimensions as attention has, is not looked at here."""
    model = packed("mixtral")
    _, cache = decode(model)
    monkeypatch.setattr(stack, "run_layers", None)
    mask = torch.ones(1, 1, 1, cache.get_seq_length() + 1, dtype=torch.bool)
    with torch.inference_mode():
        logits = model(torch.tensor([[5]]), attention_mask=mask, past_key_values=cache, use_cache=True).logits
    assert torch.isfinite(logits).all()
