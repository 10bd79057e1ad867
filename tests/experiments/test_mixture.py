"""Mixed in memory is what the packed model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from experiments.held_out import read_blocks, split
from experiments.mixture import Mixture, fused, log_probabilities, token_kl, token_losses

from moesaic import CompressOptions, compress, load
from moesaic.allocate import ThreeLevel
from moesaic.checkpoint.reader import Checkpoint
from moesaic.quantize import GPTQ, HQQ, RTN, Quantizer
from moesaic.records import BitPlan, Budget, Scores, write_json

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed kernels keep float32 activations."""
    monkeypatch.setenv("MOESAIC_CPU_PRECISION", "exact")


def some_plan(checkpoint: Checkpoint) -> BitPlan:
    """Three widths, other experts in every layer."""
    scores = {
        layer.name: tuple((7 * e + 3 * n) % 5 + e / 99 for e in range(layer.experts))
        for n, layer in enumerate(checkpoint.layers)
    }
    return ThreeLevel()([layer.shape for layer in checkpoint.layers], Budget(2.25), Scores("some", scores))


@pytest.mark.parametrize(
    ("name", "quantizer", "other"), [("rtn", RTN(symmetric=True), 16), ("hqq", HQQ(symmetric=False), 4)]
)
def test_a_plan_gives_what_the_packed_model_gives(name: str, quantizer: Quantizer, other: int, tmp_path: Path) -> None:
    """KL and loss of every block agree with the packed, loaded model's to float32's precision."""
    blocks = read_blocks(DEMO, [DEMO / "heldout.txt"], tokens=512, length=64)
    mixture = Mixture(DEMO, blocks.ids, quantizer, other_bits=other)
    plan = some_plan(mixture.checkpoint)
    write_json(tmp_path / "plan.json", plan.to_json())
    options = CompressOptions(
        plan=tmp_path / "plan.json", quantizer=name, symmetric=quantizer.symmetric, other_bits=other
    )
    packed = load(compress(DEMO, tmp_path / "packed", options), dtype=torch.float32)
    logs = log_probabilities(packed, blocks.ids)
    found = mixture.kl(plan)
    torch.testing.assert_close(found.kl, token_kl(mixture.log_probabilities, logs).mean(dim=1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.loss, token_losses(logs, blocks.ids).mean(dim=1), rtol=1e-5, atol=1e-6)
    assert found.kl.min() > 0.01


def test_full_precision_has_no_distance_before_and_after_a_plan() -> None:
    """Setting a plan and taking it back leaves the weights bit for bit as they were."""
    blocks = read_blocks(DEMO, [DEMO / "heldout.txt"], tokens=256, length=64)
    mixture = Mixture(DEMO, blocks.ids, RTN(symmetric=True))
    before = {name: value.clone() for name, value in mixture.model.named_parameters()}
    mixture.set(some_plan(mixture.checkpoint))
    assert any(not torch.equal(before[name], value) for name, value in mixture.model.named_parameters())
    mixture.restore()
    assert all(torch.equal(before[name], value) for name, value in mixture.model.named_parameters())


def test_one_expert_changes_that_expert_alone() -> None:
    """The context manager rounds one expert of one layer, and takes it back."""
    blocks = read_blocks(DEMO, [DEMO / "heldout.txt"], tokens=64, length=64)
    mixture = Mixture(DEMO, blocks.ids, RTN(symmetric=True))
    layer = mixture.layers[1]
    first, down = (mixture.model.get_parameter(name) for name in layer.fused_parameters)
    before = first.clone(), down.clone()
    with mixture.one_expert(layer, 5, 2):
        same = [torch.equal(first[e], before[0][e]) and torch.equal(down[e], before[1][e]) for e in range(8)]
        assert same == [e != 5 for e in range(8)]
    assert torch.equal(first, before[0])
    assert torch.equal(down, before[1])


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "granitemoe"])
def test_fusing_undoes_splitting(model_type: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    """Whatever the architecture's layout, canonical matrices go back to where they came from."""
    checkpoint = Checkpoint.open(tiny_checkpoint(model_type))
    layer = checkpoint.layers[0]
    matrices = checkpoint.expert(layer, 2).matrices()
    for entry, name in zip(("gate_up", "down"), layer.fused_parameters, strict=False):
        assert torch.equal(fused(layer, entry, matrices), checkpoint.expert_slice(name, 2))


def test_what_cannot_be_mixed_is_refused(tiny_checkpoint: Callable[[str], Path]) -> None:
    """Quantizers with data and encoder-decoders are errors and not approximations."""
    ids = torch.zeros(1, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="rounds with data"):
        Mixture(DEMO, ids, GPTQ())
    with pytest.raises(ValueError, match="causal"):
        Mixture(tiny_checkpoint("switch_transformers"), ids, RTN())


def test_blocks_take_equal_shares_of_the_texts_and_parts_share_none(tmp_path: Path) -> None:
    """Every domain counts the same, and what truth is measured on is not what plans are measured on."""
    text = (DEMO / "heldout.txt").read_text(encoding="utf-8")
    for name, part in (("one", text[:40_000]), ("two", text[40_000:60_000])):
        (tmp_path / f"{name}.test.txt").write_text(part, encoding="utf-8")
    blocks = read_blocks(DEMO, sorted(tmp_path.iterdir()), tokens=2048, length=64)
    assert blocks.sources == ("one", "two") * 16
    first, second = split(blocks, 1 / 4)
    assert sorted(first.sources) == ["one"] * 4 + ["two"] * 4
    assert {tuple(row) for row in first.ids.tolist()}.isdisjoint({tuple(row) for row in second.ids.tolist()})
    assert len(first) + len(second) == len(blocks)
