"""Budgets in bytes: kept, and used up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from moesaic import Checkpoint, CompressOptions, compress
from moesaic.budgets import ByteBudget, up_to
from moesaic.contents import folder_files
from moesaic.errors import BudgetInfeasible
from moesaic.packing.build import PackedBuild
from moesaic.pipeline import make_plan
from moesaic.records import BitPlan, CostTable, LayerBits, layer_of_entry

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


@demo
@pytest.mark.parametrize("per_matrix", [False, True])
@pytest.mark.parametrize("limit", [{"bpw": 2.6}, {"size": 3_050_000}], ids=str)
def test_a_global_plan_is_best_at_its_bytes(limit: dict[str, Any], per_matrix: bool) -> None:
    """The gap that it tells is that at the bytes asked for: no exchange of widths between two experts is better."""
    checkpoint = Checkpoint.open(DEMO)
    options = CompressOptions(rule="alpha_tail", allocator="global", per_matrix=per_matrix, **limit)
    costs, plan = make_plan(checkpoint, options)
    assert isinstance(costs, CostTable)
    assert "in bytes" in plan.method
    assert "gap 0" in plan.method
    assert "then layers" not in plan.method
    budget = ByteBudget(checkpoint, options, partial(folder_bytes, options=options, costs=costs))
    smaller = [cost_of(other, costs) for other in exchanges(plan) if budget.measure(other) <= budget.limit]
    assert len(smaller) > 10
    assert min(smaller) >= cost_of(plan, costs) * (1 - 1e-9)


def folder_bytes(build: PackedBuild, options: CompressOptions, costs: CostTable) -> int:
    """Bytes of the folder of a build."""
    return sum(folder_files(build, costs, options).values())


def cost_of(plan: BitPlan, costs: CostTable) -> float:
    """What a plan costs."""
    total = 0.0
    for name, rows in costs.layers.items():
        bits = plan.layers[layer_of_entry(name)]
        widths = bits.entry("down") if name.endswith("/down") else bits.gate_up
        total += sum(row[costs.bits.index(width)] for row, width in zip(rows, widths, strict=True))
    return total


def exchanges(plan: BitPlan) -> Iterator[BitPlan]:
    """Plans in which one expert of the first layer has a bit more, and at most one of the last a bit less."""
    first, last = min(plan.layers), max(plan.layers)
    for up, down in product(range(8), range(-1, 8)):
        more, less = list(plan.layers[first].gate_up), list(plan.layers[last].gate_up)
        more[up] += 1
        less[down] -= down >= 0
        if max(more) <= 4 and min(less) >= 1:
            changed = {first: both(plan.layers[first], more), last: both(plan.layers[last], less)}
            yield replace(plan, layers={**plan.layers, **changed})


def both(bits: LayerBits, gate_up: list[int]) -> LayerBits:
    """Other widths of gate and up; of down too where they were the same."""
    return LayerBits(tuple(gate_up), tuple(gate_up) if bits.down == bits.gate_up else bits.down)


def test_what_a_topped_up_plan_says(tiny_checkpoint: Tiny) -> None:
    """A plan that took layers over from the next larger one says so."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    methods = {
        make_plan(checkpoint, CompressOptions(rule="router_norm", bpw=bpw / 20))[1].method for bpw in range(48, 68, 2)
    }
    assert any(method.endswith("then layers of the next larger plan") for method in methods)


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
            {"bpw": 0.9, "rule": "router_norm+max_var"},
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
