"""Budgets in bytes: kept, and used up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesaic import Checkpoint, CompressOptions, compress
from moesaic.budgets import ByteBudget, up_to
from moesaic.errors import BudgetInfeasible
from moesaic.pipeline import make_plan

DEMO = Path(__file__).parents[1] / "models" / "demo"
Tiny = Callable[[str], Path]
KINDS: list[dict[str, Any]] = [
    {"rule": "router_norm"},
    {"rule": "router_norm", "levels": (2, 3)},
    {"rule": "alpha_tail", "allocator": "global"},
    {"rule": "alpha_tail", "allocator": "global", "per_matrix": True},
    {"rule": "alpha_tail", "allocator": "pmq"},
]
demo = pytest.mark.skipif(not (DEMO / "model.safetensors").is_file(), reason="the demo model is not there")


def step_of(checkpoint: Checkpoint) -> float:
    """Bytes of one bit more for the largest expert, scales of a first zero point aside."""
    return max(layer.shape.expert_weights for layer in checkpoint.layers) / 8


@demo
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_folder_has_at_most_that_size(kind: dict[str, Any], tmp_path: Path) -> None:
    """The real folder is no larger than --size, and within 1 % or one expert's step of it; the plan says all."""
    size = 3_050_000
    out = compress(DEMO, tmp_path / "out", CompressOptions(size=size, **kind))
    real = sum(path.stat().st_size for path in out.iterdir())
    assert real <= size
    assert size - real <= max(0.01 * size, step_of(Checkpoint.open(DEMO)))
    plan = json.loads((out / "moesaic.json").read_text())["plan"]
    assert plan["requested"] == {"size": size}
    assert plan["requested_bits"] is None
    assert plan["reached"]["size"] == real
    assert plan["reached"]["bits"] == plan["reached_bits"]


@demo
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_stored_bits_are_at_most_those(kind: dict[str, Any]) -> None:
    """Stored bits a weight stay below --bpw, within 1 % or one expert's step."""
    checkpoint = Checkpoint.open(DEMO)
    options = CompressOptions(bpw=2.6, **kind)
    _, plan = make_plan(checkpoint, options)
    reached = ByteBudget(checkpoint, options, lambda build: 0).measure(plan)
    weights = sum(layer.experts * layer.shape.expert_weights for layer in checkpoint.layers)
    assert reached <= 2.6
    assert 2.6 - reached <= max(0.026, 8 * step_of(checkpoint) / weights)
    assert plan.requested == {"bpw": 2.6}


def test_reached_bits_are_the_manifests(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """The manifest's stored bits are what the budget was kept by."""
    out = compress(tiny_checkpoint("mixtral"), tmp_path / "out", CompressOptions(bpw=4.0))
    manifest = json.loads((out / "moesaic.json").read_text())
    assert 3.5 < manifest["stored_bpw"] <= 4.0
    assert manifest["plan"]["reached"]["bpw"] == manifest["stored_bpw"]


def test_more_than_everything_leaves_the_weights_as_they_are(tiny_checkpoint: Tiny) -> None:
    """A size above that of the unpacked model gives 16 bits everywhere."""
    _, plan = make_plan(Checkpoint.open(tiny_checkpoint("mixtral")), CompressOptions(size=10**12))
    assert {width for bits in plan.layers.values() for width in (*bits.gate_up, *bits.down)} == {16}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 1000}, r"--size 1kB is out of reach: all but the experts .* alone take .*kB with --other-bits 4"),
        (
            {"bpw": 0.9},
            r"--bpw 0.9 is out of reach: the smallest plan \(router_norm\+max_var, three_level 1/2/3\) takes",
        ),
    ],
)
def test_budgets_that_nothing_meets(changes: dict[str, Any], words: str, tiny_checkpoint: Tiny) -> None:
    """The refusal says what the smallest folder or plan takes; asked for that, it is met."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    with pytest.raises(BudgetInfeasible, match=words):
        make_plan(checkpoint, CompressOptions(**changes))


def test_a_size_between_the_rest_and_the_smallest_plan(tiny_checkpoint: Tiny) -> None:
    """The refusal names the smallest folder, and that size is enough."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    with pytest.raises(BudgetInfeasible) as raised:
        make_plan(checkpoint, CompressOptions(size=1000))
    words = str(raised.value).split()
    least = int(float(words[words.index("folder") + 2].rstrip(";kB")) * 1000)
    with pytest.raises(BudgetInfeasible, match="out of reach: the smallest plan"):
        make_plan(checkpoint, CompressOptions(size=least - 1000))
    _, plan = make_plan(checkpoint, CompressOptions(size=least + 1000))
    assert {1} == {width for bits in plan.layers.values() for width in bits.gate_up}


@pytest.mark.parametrize(("size", "text"), [(7, "7B"), (1_000, "1kB"), (2_211_001, "2.212MB"), (16 * 10**9, "16GB")])
def test_sizes_that_can_be_asked_for_again(size: int, text: str) -> None:
    """A size in a message is rounded up, so that giving it helps."""
    assert up_to(size) == text
