"""A model run one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from moesaic.calibrate.activations import Shelf
from moesaic.calibrate.mlp import ExpertMlp
from moesaic.calibrate.stream import LayerStream
from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import UnsupportedModel
from tests.tiny import CONFIGS

FAMILIES = [name for name in CONFIGS if name != "switch_transformers"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_whole_model(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer by layer and expert by expert, in batches of unequal size, gives transformers' own logits."""
    monkeypatch.setattr("moesaic.calibrate.stream.BATCH_TOKENS", 48)
    folder = tiny_checkpoint(family)
    tokens = torch.randint(2, 128, (5, 24), generator=torch.Generator().manual_seed(0))
    stream = LayerStream(Checkpoint.open(folder), tokens, Shelf(tmp_path))
    states = stream.embed()
    with torch.no_grad():
        for number in range(stream.count):
            with stream.loaded(number):
                layer, out = stream.moe(number), None
                if layer is not None:
                    routed = stream.route(number, states)
                    assert routed.logits is None or routed.logits.shape == (120, layer.experts)
                    out = torch.zeros_like(routed.hidden)
                    for expert in range(layer.experts):
                        mlp = ExpertMlp.of(stream.checkpoint.expert(layer, expert), stream.activation(layer))
                        token, weight = routed.of(expert)
                        out.index_add_(0, token, mlp(routed.hidden[token]) * weight[:, None])
                stream.finish(number, states, out)
        found = stream.logits(slice(0, 5), states)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        wanted = model(input_ids=tokens, use_cache=False).logits
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_a_layer_has_weights_only_while_it_is_at_work(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Outside of `loaded` a decoder layer is on the meta device, and its routed experts always are."""
    stream = LayerStream(
        Checkpoint.open(tiny_checkpoint("mixtral")), torch.zeros(1, 4, dtype=torch.int64), Shelf(tmp_path)
    )
    prefix = stream.prefix(0)
    with stream.loaded(0):
        assert not stream.parameter(f"{prefix}self_attn.q_proj.weight").is_meta
        assert stream.parameter(f"{prefix}mlp.experts.down_proj").is_meta
    assert stream.parameter(f"{prefix}self_attn.q_proj.weight").is_meta


def test_encoder_decoders_are_refused(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The message says what to do instead."""
    with pytest.raises(UnsupportedModel, match=r"encoder-decoder.*rtn or hqq"):
        LayerStream(
            Checkpoint.open(tiny_checkpoint("switch_transformers")),
            torch.zeros(1, 4, dtype=torch.int64),
            Shelf(tmp_path),
        )
