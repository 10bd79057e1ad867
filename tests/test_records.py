"""The nouns: their checks, arithmetic and file forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import BudgetInfeasible, CorruptFile, InvalidPlan
from moesaic.records import (
    WIDTHS,
    BitPlan,
    Budget,
    ExpertWeights,
    LayerBits,
    LayerShape,
    QuantizedWeight,
    RunRecord,
    Scores,
    read_json,
    write_json,
)

SHAPES = [LayerShape("a", 2, 200, 100), LayerShape("b", 3, 20, 10)]
widths = st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=6)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def quantized(**changes: object) -> QuantizedWeight:
    """A 2 x 40 matrix at 2 bits in groups of 32."""
    made = {
        "codes": torch.zeros(2, 64, dtype=torch.uint8),
        "scale_codes": torch.ones(2, 2, dtype=torch.uint8),
        "zero_codes": None,
        "row_scale": torch.ones(2).bfloat16(),
        "bits": 2,
        "group_size": 32,
        "columns": 40,
    }
    return QuantizedWeight(**{**made, **changes})  # type: ignore[arg-type]


def test_first_layer_is_the_gate_where_there_is_one() -> None:
    """The papers' W1 is the gate projection of gated experts and the only first matrix of others."""
    gate, up, down = torch.zeros(2, 3), torch.ones(2, 3), torch.ones(3, 2)
    assert ExpertWeights(gate, up, down).first_layer is gate
    assert ExpertWeights(None, up, down).first_layer is up


def test_matrices_and_biases_come_in_stored_order() -> None:
    """Gate before up before down, absent ones left out: the order in which they lie in the file."""
    one = torch.zeros(1)
    full = ExpertWeights(one, one, one, gate_bias=one, down_bias=one)
    assert list(full.matrices()) == ["gate", "up", "down"]
    assert list(full.biases()) == ["gate", "down"]
    assert list(ExpertWeights(None, one, one).matrices()) == ["up", "down"]


def test_dequantize_by_hand() -> None:
    """One group by hand: w = (row_scale * scale_code) * (code - zero)."""
    codes = torch.zeros(1, 32, dtype=torch.uint8)
    codes[0, :4] = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    weight = quantized(
        codes=codes,
        scale_codes=torch.tensor([[10]], dtype=torch.uint8),
        zero_codes=torch.tensor([[85]], dtype=torch.uint8),  # 85 * 3 / 255 = 1
        row_scale=torch.tensor([0.5]).bfloat16(),
        columns=4,
    )
    assert weight.dequantize().tolist() == [[-5.0, 0.0, 5.0, 10.0]]
    assert not weight.symmetric


def test_symmetric_zero_is_the_middle_of_the_codes() -> None:
    """Without zero codes, zero lies half-way between two codes."""
    assert quantized().zero().unique().tolist() == [1.5]
    assert quantized().symmetric


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 5},
        {"bits": 16},
        {"columns": 65},
        {"columns": 32},
        {"columns": 0},
        {"group_size": 128},
        {"scale_codes": torch.ones(2, 3, dtype=torch.uint8)},
        {"row_scale": torch.ones(3).bfloat16()},
    ],
)
def test_contradicting_parts_are_refused(changes: dict[str, object]) -> None:
    """A quantized matrix whose parts do not fit together cannot be made."""
    with pytest.raises(ValueError, match=r"bits|cover|must be"):
        quantized(**changes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_refuse_what_is_not_finite(bad: float) -> None:
    """NaN weights are reported with layer and expert, and never silently ranked."""
    with pytest.raises(CorruptFile, match="expert 1 in L"):
        Scores("rule", {"L": (1.0, bad)})


@settings(max_examples=50)
@given(layers=st.dictionaries(st.sampled_from(["a", "b.0", "ü"]), st.lists(numbers, max_size=5).map(tuple)))
def test_scores_survive_their_file_form(layers: dict[str, tuple[float, ...]]) -> None:
    """Scores are the same after JSON, to the last bit."""
    scores = Scores("rule", layers, {"seed": 1})
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"format": "moesaic-plan/1", "layers": {}},
        {"format": "moesaic-scores/1", "layers": []},
        {"format": "moesaic-scores/1", "layers": {"a": "x"}},
        {"format": "moesaic-scores/1", "layers": {"a": 3}},
        {"format": "moesaic-scores/1", "layers": {"a": [None]}},
        {"format": "moesaic-scores/1", "layers": {"a": [float("nan")]}},
    ],
)
def test_what_is_no_scores_file_is_refused(data: dict[str, object]) -> None:
    """Another file, or a broken one, is a CorruptFile and not a stack trace."""
    with pytest.raises(CorruptFile):
        Scores.from_json(data)


@pytest.mark.parametrize("bits", [0, -1, 16.01, float("nan"), float("inf")])
def test_impossible_budgets_are_refused(bits: float) -> None:
    """A budget outside what any width gives is a usage error at once."""
    with pytest.raises(BudgetInfeasible, match="out of reach"):
        Budget(bits)


def test_layer_shape_adds_its_entries() -> None:
    """An expert's weights are those of both entries."""
    assert SHAPES[0].expert_weights == 300


def test_reached_bits_are_weighted_by_size() -> None:
    """By hand: (2 experts, entries 200 and 100) and (3 experts, entries 20 and 10)."""
    plan = BitPlan("hand", None, {"a": LayerBits((2, 3), (4, 8)), "b": LayerBits((1, 1, 1), (16, 16, 16))})
    total = 5 * 200 + 12 * 100 + 3 * 20 + 48 * 10
    assert plan.reached_bits(SHAPES) == total / (2 * 300 + 3 * 30)


@pytest.mark.parametrize("width", [0, 5, 6, 7, 9, 32, -1])
def test_widths_the_format_lacks_are_refused(width: int) -> None:
    """A plan with another width names layer, expert and width."""
    with pytest.raises(InvalidPlan, match=f"L, expert 1: width {width}"):
        BitPlan("hand", None, {"L": LayerBits((2, width), (2, 2))})
    with pytest.raises(InvalidPlan, match=f"L, expert 0: width {width}"):
        BitPlan("hand", None, {"L": LayerBits((2, 2), (width, 2))})


def test_entries_of_different_length_are_refused() -> None:
    """Both entries must speak of the same experts."""
    with pytest.raises(InvalidPlan, match="2 widths for gate_up but 1 for down"):
        BitPlan("hand", None, {"L": LayerBits((2, 2), (2,))})


def both(*bits: int) -> LayerBits:
    """The same widths for both entries."""
    return LayerBits(bits, bits)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"a": both(1, 1)}, "no entry for b"),
        ({"a": both(1, 1), "b": both(1, 1)}, "2 experts to b, the model has 3"),
        ({"a": both(1, 1), "b": both(1, 1, 1), "c": both(1)}, "names c"),
        ({"a": both(3, 3), "b": both(3, 3, 3)}, "3.0000 bits, more than its own budget of 2"),
    ],
)
def test_plan_for_another_model_is_refused(layers: dict[str, LayerBits], message: str) -> None:
    """A plan that misses a layer, knows another, counts otherwise or breaks its own budget says so."""
    with pytest.raises(InvalidPlan, match=message):
        BitPlan("m", 2, layers).check(SHAPES)


def test_plan_without_budget_may_reach_anything() -> None:
    """`requested_bits: null` is how a person says that the widths are the point."""
    BitPlan("hand", None, {"a": both(16, 16), "b": both(8, 8, 8)}).check(SHAPES)


@settings(max_examples=50)
@given(first=widths, data=st.data(), budget=st.none() | st.floats(1, 16))
def test_plan_survives_its_file_form(first: list[int], data: st.DataObject, budget: float | None) -> None:
    """A plan is the same after JSON, whether its entries share widths or not."""
    second = data.draw(st.lists(st.sampled_from(WIDTHS), min_size=len(first), max_size=len(first)))
    plan = BitPlan("m", budget, {"a": LayerBits(tuple(first), tuple(second)), "b": both(*first)})
    assert BitPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_plan_file_is_one_line_a_layer_with_the_reached_bits() -> None:
    """The file form is what a person edits: widths in a line, the average beside the budget."""
    data = BitPlan("m", 2.5, {"a": both(3, 2), "b": LayerBits((1, 2, 3), (1, 1, 1))}).to_json(SHAPES)
    assert data["layers"] == {"a": "3 2", "b": {"gate_up": "1 2 3", "down": "1 1 1"}}
    assert data["requested_bits"] == 2.5
    assert data["reached_bits"] == pytest.approx((5 * 300 + 6 * 20 + 3 * 10) / 690)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "moesaic-scores/1"}, "not a plan file"),
        ({"layers": []}, "not a plan file"),
        ({"requested_bits": "2"}, "requested_bits"),
        ({"requested_bits": float("nan")}, "requested_bits"),
        ({"layers": {"a": "2 x"}}, "a: '2 x' is not a line of widths"),
        ({"layers": {"a": None}}, "a: None"),
        ({"layers": {"a": 2}}, "a: 2"),
        ({"layers": {"a": [2.7, 2]}}, "a: "),
        ({"layers": {"a": "2.0 2"}}, "a: '2.0 2'"),
        ({"layers": {"a": {"gate_up": "2"}}}, 'no "down"'),
        ({"layers": {"a": "2 7"}}, "expert 1: width 7"),
    ],
)
def test_edited_plans_are_checked(changes: dict[str, object], message: str) -> None:
    """What a person may get wrong in the file is answered with the place and the value."""
    data = {"format": "moesaic-plan/1", "method": "m", "requested_bits": 2, "layers": {"a": "2 2"}, **changes}
    with pytest.raises(InvalidPlan, match=message):
        BitPlan.from_json(data)


def test_run_record_keeps_its_conditions() -> None:
    """A figure's file form carries unit, count and conditions."""
    data = RunRecord("perplexity", 3.5, "", 100, {"seed": 0}).to_json()
    assert data == {"name": "perplexity", "value": 3.5, "unit": "", "n": 100, "conditions": {"seed": 0}}
    assert RunRecord("perplexity", 3.5, "", 100, {}, (3.0, 4.0)).to_json()["interval"] == [3.0, 4.0]


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON"), (b"[1]", "a JSON list"), (None, "cannot be read")],
)
def test_unreadable_json_names_the_file(tmp_path: Path, raw: bytes | None, message: str) -> None:
    """Missing, torn, binary and wrong JSON files give one line with the path."""
    path = tmp_path / "x.json"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(CorruptFile, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_written_json_is_complete_and_leaves_no_draft(tmp_path: Path) -> None:
    """The file is replaced in one step, in UTF-8, and nothing else stays."""
    path = tmp_path / "x.json"
    write_json(path, {"a": "é", "b": [1, 2]})
    write_json(path, {"a": "é"})
    assert read_json(path) == {"a": "é"}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]
