"""What a run will give and need."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moesaic.checkpoint.reader import Checkpoint
from moesaic.options import CompressOptions
from moesaic.pipeline import make_plan
from moesaic.planning.forecast import Wishes, forecast, plan_cost
from moesaic.records import BitPlan, CostTable, LayerBits

QUICK = Wishes(measure=False)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[[str], Path]) -> Checkpoint:
    """A tiny Mixtral."""
    return Checkpoint.open(tiny_checkpoint("mixtral"))


def costs(checkpoint: Checkpoint, **changes: object) -> CostTable:
    """Costs that fall with the width, by expert."""
    rows = tuple(tuple(10.0 * (expert + 1) / width for width in (1, 2, 3)) for expert in range(8))
    table = CostTable("made up", (1, 2, 3), {layer.name: rows for layer in checkpoint.layers})
    return replace(table, **changes)  # type: ignore[arg-type]


def test_it_is_the_plan_of_compress(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The plan is the one that `compress` makes, every figure says from what it follows, and all of it is JSON."""
    options = CompressOptions(bits=2.5)
    found = forecast(checkpoint, options, Wishes(gpu_hour=2.0, place=tmp_path, startup=1.5))
    assert found.plan == make_plan(checkpoint, options)[1]
    assert all(figure.source for figure in found.figures.values())
    assert {"peak_memory", "disk", "seconds", "folder_bytes"} <= set(found.figures)
    assert found.figures["folder_bytes"].value == found.folder_bytes == sum(found.files.values())
    assert "start 1.5 s" in found.figures["seconds"].source
    whole = json.loads(json.dumps(found.to_json()))
    assert whole["running"] == {"accelerator_gb": 80, "price": 2.0, "before": 1, "after": 1}
    assert list(tmp_path.iterdir()) == []


def test_without_measuring_nothing_is_claimed(checkpoint: Checkpoint) -> None:
    """Memory and time are not guessed where nothing was measured."""
    found = forecast(checkpoint, CompressOptions(bits=2.5), QUICK)
    assert not {"peak_memory", "seconds"} & set(found.figures)
    assert found.running is None


def test_the_cache_counts(checkpoint: Checkpoint) -> None:
    """A longer context needs more memory, by the bytes of the cache."""
    short, long = (
        forecast(checkpoint, CompressOptions(bits=2.5), replace(QUICK, context=context)) for context in (1, 10**9)
    )
    assert short.cache is not None
    assert long.cache is not None
    assert long.cache.size == 10**9 * short.cache.size
    eight = next(fit for fit in long.fits if fit.place == "8 GB")
    assert eight.after > 1
    assert short.context == 1


def test_predicted_cost(checkpoint: Checkpoint) -> None:
    """With costs the plan is the one of least cost, and its cost is the sum over the experts at their widths."""
    table = costs(checkpoint)
    found = forecast(checkpoint, CompressOptions(bits=2), QUICK, costs=table)
    total = sum(
        table.layers[name][expert][width - 1]
        for name, bits in found.plan.layers.items()
        for expert, width in enumerate(bits.down)
    )
    assert found.cost == pytest.approx(total)
    other = forecast(checkpoint, CompressOptions(bits=2, allocator="uniform"), QUICK, costs=table)
    assert other.cost is not None
    assert other.cost >= found.cost
    assert forecast(checkpoint, CompressOptions(bits=2, rule="router_norm"), QUICK).cost is None


def test_costs_that_do_not_say(checkpoint: Checkpoint) -> None:
    """A width that was not measured, an expert in two widths, raw errors: no cost rather than a wrong one."""
    names = [layer.name for layer in checkpoint.layers]
    table = costs(checkpoint)
    whole = LayerBits((2,) * 8, (2,) * 8)
    assert plan_cost(BitPlan("m", None, dict.fromkeys(names, whole)), table) is not None
    for bits in (LayerBits((4,) * 8, (4,) * 8), LayerBits((1,) * 8, (2,) * 8)):
        assert plan_cost(BitPlan("m", None, {**dict.fromkeys(names, whole), names[0]: bits}), table) is None
    ones = {name: (1.0,) * 8 for name in names}
    raw = costs(checkpoint, frequency=ones, routing_weight=ones)
    assert plan_cost(BitPlan("m", None, dict.fromkeys(names, whole)), raw) is None
