"""The allocation table: one plan is measured once, two ways of rounding agree, and rows follow from records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from experiments.allocation_table.__main__ import measure_all, table_rows
from experiments.allocation_table.cases import LEVELS, Rule, rules
from experiments.allocation_table.measure import Yardstick, stored_bits
from experiments.allocation_table.plans import Planner, plan_key
from experiments.allocation_table.table import Row, correlations, markdown
from experiments.journal import Journal
from tests.talking import talking_copy

from moesaic import CompressOptions
from moesaic.pipeline import calibrate
from moesaic.records import BitPlan, LayerBits

TEXT = {"calibration": (), "sequences": 4, "sequence_length": 16}
RULES = [
    Rule("uniform", {"allocator": "uniform"}),
    Rule("Fisher", {"rule": "fisher_error", "allocator": "global"}),
    Rule("PMQ", {"rule": "quant_error", "allocator": "pmq"}, {"form": "paper"}),
]


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a tokenizer."""
    return talking_copy(tiny_checkpoint("mixtral"), tmp_path_factory.mktemp("source") / "mixtral")


@pytest.fixture(scope="module")
def planner(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Planner:
    """Statistics of a little text, and what is planned from them."""
    stats = tmp_path_factory.mktemp("stats") / "stats.safetensors"
    calibrate(source, stats, CompressOptions(bits=2.5, levels=LEVELS, **TEXT), rules=("quant_error", "fisher_error"))
    return Planner(source, stats, TEXT)


@pytest.fixture
def blocks() -> torch.Tensor:
    """Random tokens, `[4, 16]`."""
    return torch.randint(2, 100, (4, 16), generator=torch.Generator().manual_seed(0))


def test_a_key_is_that_of_the_widths_alone() -> None:
    """Rules that come to one plan share its measurement, whatever they are called."""
    widths = {"layer": LayerBits((1, 2), (1, 2))}
    assert plan_key(BitPlan("a", 1.5, widths)) == plan_key(BitPlan("b", None, widths))
    assert plan_key(BitPlan("a", 1.5, widths)) != plan_key(BitPlan("a", 1.5, {"layer": LayerBits((1, 2), (2, 1))}))


def test_every_rule_meets_the_budget_and_uniform_only_whole_ones(planner: Planner) -> None:
    """No row of the table has more bits than its column says."""
    shapes = [layer.shape for layer in planner.checkpoint.layers]
    found = list(planner.plans(RULES, (2.0, 2.5)))
    assert [(each.rule, each.bits) for each in found] == [
        ("uniform", 2.0),
        ("Fisher", 2.0),
        ("PMQ", 2.0),
        ("Fisher", 2.5),
        ("PMQ", 2.5),
    ]
    assert all(each.plan.reached_bits(shapes) <= each.bits + 1e-9 for each in found)


def test_stored_bits_depend_on_code_bits_alone(planner: Planner) -> None:
    """Equal code bits are equal bytes, which is what makes the columns fair."""
    plans = [each.plan for each in planner.plans(RULES, (2.0,)) if each.rule != "PMQ"]
    sizes = {round(stored_bits(planner.checkpoint, plan, name), 9) for plan in plans for name in ("rtn", "gptq")}
    assert len(sizes) == 1


def test_measuring_goes_on_where_it_stopped(
    source: Path, planner: Planner, blocks: torch.Tensor, tmp_path: Path
) -> None:
    """A torn last line costs one measurement; what was measured before is not measured again, and rows come from it."""
    planned = list(planner.plans(RULES, (2.0,)))
    yardstick, path = Yardstick(source, blocks, TEXT, tmp_path), tmp_path / "plans.jsonl"
    first = Journal(path, {"a": 1})
    measure_all(yardstick, planned, ["rtn"], first)
    head, one, *_, last = path.read_text().splitlines()
    marked = json.loads(one) | {"value": {"kl": [7.0] * 4, "loss": [1.0] * 4}}
    path.write_text("\n".join([head, json.dumps(marked), last[:-20]]))
    again = Journal(path, {"a": 1})
    measure_all(yardstick, planned, ["rtn"], again)
    assert again.found.pop(marked["key"])["kl"] == [7.0] * 4
    assert again.found == {key: first.found[key] for key in again.found}
    assert len(table_rows(planner, planned, ["rtn"], first.found)) == len(planned)


def test_the_packed_road_agrees_with_rounding_in_memory(
    source: Path, planner: Planner, blocks: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of quantizers with data and without are measured in two ways, which give the same for the same weights."""
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")
    plan = next(iter(planner.plans(RULES[1:], (2.0,)))).plan
    yardstick = Yardstick(source, blocks, TEXT, tmp_path)
    torch.testing.assert_close(
        yardstick._packed("rtn", plan).kl, yardstick.measure("rtn", plan).kl, rtol=1e-3, atol=1e-6
    )


def test_the_table_marks_the_best_and_what_cannot_be_told_from_it() -> None:
    """Bold is the least KL; a star is a paired interval that holds zero."""
    rows = [
        Row("best", "rtn", 2.0, 2.1, [1.0, 2.0, 3.0], [1.0] * 3),
        Row("close", "rtn", 2.0, 2.1, [1.1, 1.9, 3.1], [1.0] * 3),
        Row("far", "rtn", 2.0, 2.1, [2.0, 3.1, 4.0], [1.0] * 3),
    ]
    lines = markdown(rows).splitlines()
    assert "**2.0000 ±" in lines[2]
    assert lines[3].endswith("* |")
    assert not lines[4].endswith("* |")


def test_correlation_counts_within_layers() -> None:
    """Two rules that agree in each layer correlate fully, whatever the layers' levels are."""
    found = correlations({"a": [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], "b": [[5.0, 6.0, 7.0], [1.0, 2.0, 3.0]]})
    assert found["matrix"] == [[1.0, 1.0], [1.0, 1.0]]


def test_the_rules_are_those_that_the_table_is_to_compare() -> None:
    """Every rule has its MaxVar form, and the change of norms is there only where the first routers are known."""
    names = [rule.name for rule in rules(Path("initial"))]
    assert len(names) == len(set(names))
    assert {"router-norm change", "router-norm change + MaxVar"} <= set(names)
    assert not any("change" in rule.name for rule in rules(None))
