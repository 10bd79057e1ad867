"""What expert layers did, in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import load
from moesaic.fit.differentiable import differentiable
from moesaic.fit.recording import METRICS, record_layers
from moesaic.fit.rules import record
from moesaic.runtime.skipping import expert_modules


@pytest.mark.parametrize("kind", ["packed", "top_four"])
def test_the_record_is_what_the_layer_did(
    kind: str, request: pytest.FixtureRequest, windows: Tensor, tmp_path: Path
) -> None:
    """`w^T G w` is the squared norm of the layer's own output, for every token of every window in order."""
    model = load(request.getfixturevalue(kind), dtype=torch.float32)
    outputs: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _a, out, name=name: outputs.setdefault(name, []).append(out))
        for name, module in expert_modules(model).items()
    ]
    recording = record_layers(model, windows, tmp_path, metric="output")
    for hook in hooks:
        hook.remove()
    for name, files in recording.layers.items():
        routed, gram = files.part(0, windows.numel())
        norm = torch.einsum("ti,tij,tj->t", routed.weights, gram, routed.weights)
        torch.testing.assert_close(norm, torch.cat(outputs[name]).square().sum(-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_the_routing_is_that_of_the_rules(metric: str, model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> None:
    """Both kinds hold the routing that the rules are calibrated on, token by token."""
    with differentiable(model, 1 << 30):
        wanted = record(model, windows)
        found = record_layers(model, windows, tmp_path, metric=metric).routing()
    assert list(found) == list(wanted)
    for layer, parts in wanted.items():
        (part,) = found[layer]
        torch.testing.assert_close(part.weights, torch.cat([each.weights for each in parts]))
        assert torch.equal(part.experts, torch.cat([each.experts for each in parts]))
        assert part.count == 8


def test_fisher_slopes_are_derivatives(model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> None:
    """Of G in its Fisher form every minor vanishes, since it is a square: `G_01^2 = G_00 G_11`."""
    with differentiable(model, 1 << 30):
        recording = record_layers(model, windows, tmp_path)
    for files in recording.layers.values():
        gram = files.part(0, windows.numel())[1]
        assert bool((gram[:, 0, 0] >= 0).all())
        assert float(gram.abs().max()) > 0
        torch.testing.assert_close(gram[:, 0, 1].square(), gram[:, 0, 0] * gram[:, 1, 1], rtol=1e-3, atol=1e-12)


def test_what_is_recorded_lies_on_the_disk(model: PreTrainedModel, windows: Tensor, tmp_path: Path) -> None:
    """Nothing grows in memory with the text: all arrays are maps of files, of the size that is documented."""
    recording = record_layers(model, windows, tmp_path, metric="output")
    for files in recording.layers.values():
        arrays = (files.hidden, files.weights, files.experts, files.gram)
        assert all(isinstance(array, np.memmap) for array in arrays)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == len(recording.layers) * windows.numel() * (2 * model.config.hidden_size + 4 * 2 * (2 + 2))
