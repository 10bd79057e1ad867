"""What every scoring rule, allocator and quantizer promises; a new one is tested by being registered."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from moesaic.allocate import ALLOCATORS, PerMatrix, needs_costs
from moesaic.allocate.choices import shapes_of
from moesaic.errors import BudgetInfeasible, UsageError
from moesaic.prune import POLICIES, Otp
from moesaic.prune.decide import decide, rescale
from moesaic.quantize import QUANTIZERS
from moesaic.records import PACKED_WIDTHS, BitPlan, Budget, CostTable, LayerShape, Scores
from moesaic.scores import COSTS, SCORERS, CostRule, needs_errors, needs_stats
from tests.prune.made_up import random_routed
from tests.quantize.made_up import gaussian, rms_error, rows_of, same
from tests.scores.made_up import MadeUp, random_weights

SHAPES = [LayerShape("a", 8, 200, 100), LayerShape("b", 8, 200, 100), LayerShape("c", 64, 20, 10)]
SCORES = Scores("r", {shape.name: tuple(float(i * 7 % 5) for i in range(shape.experts)) for shape in SHAPES})
BUDGETS = [1, 1.3, 1.5, 2, 2.0625, 2.375, 2.5, 2.99, 3, 3.5, 4, 8, 12, 16]
GRIDS = [(name, symmetric, group) for name in QUANTIZERS for symmetric in (False, True) for group in (32, 64, 128)]
quantizers = pytest.mark.parametrize(("name", "symmetric", "group"), GRIDS)
COST_RULES = [(name, per_matrix) for name in COSTS for per_matrix in (False, True)]
costs = pytest.mark.parametrize(("name", "per_matrix"), COST_RULES)
scorers = pytest.mark.parametrize("name", SCORERS)
allocators = pytest.mark.parametrize("name", ALLOCATORS)


# ---- scoring rules ----


@scorers
@pytest.mark.parametrize("initial", [False, True])
def test_scores_have_one_finite_number_an_expert(name: str, initial: bool) -> None:
    """Every rule scores every expert of every layer, with or without the initial router."""
    weights = random_weights()
    weights.initial = weights.initial if initial else None
    scores = SCORERS[name]()(weights)
    assert {layer: len(values) for layer, values in scores.layers.items()} == weights.experts
    assert all(isinstance(value, float) for values in scores.layers.values() for value in values)
    assert scores.rule == name


@scorers
def test_scores_are_deterministic_and_survive_json(name: str) -> None:
    """Twice the same weights, twice the same scores, also after their file form."""
    scores = SCORERS[name]()(random_weights())
    assert SCORERS[name]()(random_weights()) == scores
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores


@pytest.mark.parametrize("name", [name for name in SCORERS if not name.startswith("random")])
def test_scores_follow_the_experts(name: str) -> None:
    """Renumbering the experts renumbers the scores: a rule sees weights, not places."""
    weights = random_weights()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = weights.renumbered(order)
    before, after = SCORERS[name]()(weights), SCORERS[name]()(moved)
    for layer, values in before.layers.items():
        assert after.layers[layer] == pytest.approx([values[i] for i in order])


@scorers
def test_scoring_changes_no_weight(name: str) -> None:
    """Rules are pure: what they are given stays as it was."""
    weights, fresh = random_weights(), random_weights()
    SCORERS[name]()(weights)
    assert all(torch.equal(weights.routers[layer], fresh.routers[layer]) for layer in weights.routers)
    assert all(torch.equal(*pair) for pair in zip(weights.first["layers.0"], fresh.first["layers.0"], strict=True))


def test_direction_of_the_scores() -> None:
    """Larger = more bits, as each rule's page says: small router norm up, large variance up."""
    weights = MadeUp({"L": torch.tensor([[1.0, 0.0], [2.0, 0.0]])}, {"L": [torch.eye(2), torch.eye(2) * 9]})
    small_first = SCORERS["router_norm"]()(weights).layers["L"]
    wide_first = SCORERS["max_var"]()(weights).layers["L"]
    both = SCORERS["router_norm+max_var"]()(weights).layers["L"]
    assert small_first[0] > small_first[1]
    assert wide_first[1] > wide_first[0]
    assert both[1] > both[0]


@scorers
def test_a_rule_reads_statistics_only_if_it_says_so(name: str) -> None:
    """`needs_stats` tells the command whether text has to be run; it has to be true of what the rule does."""
    weights = random_weights()
    rule = SCORERS[name]()
    rule(weights)
    assert ("stats" in weights.asked) == needs_stats(rule)
    weights.measured = None
    if needs_stats(rule):
        with pytest.raises(UsageError, match="--stats"):
            rule(weights)


@pytest.mark.parametrize("name", [name for name in [*SCORERS, *COSTS] if "+" not in name and name != "max_var"])
def test_every_rule_is_there_with_max_var(name: str) -> None:
    """Each rule can be reordered by MaxVar under its name and `+max_var`."""
    assert (name in SCORERS) == (f"{name}+max_var" in SCORERS)
    assert (name in COSTS) == (f"{name}+max_var" in COSTS)


# ---- rules of costs ----


def made_costs(name: str, per_matrix: bool) -> CostRule:
    """A rule of costs with its knob `per_matrix`, which those that are reordered have inside."""
    rule: Any = COSTS[name]()
    if hasattr(rule, "base"):
        return replace(rule, base=replace(rule.base, per_matrix=per_matrix))
    return replace(rule, per_matrix=per_matrix)


@costs
def test_costs_have_one_number_an_expert_and_width(name: str, per_matrix: bool) -> None:
    """Every cost rule has finite costs from 0 up for every expert, which do not rise with the width, and says sizes."""
    weights = random_weights()
    table = made_costs(name, per_matrix)(weights)
    layers = weights.experts
    names = [f"{layer}/{entry}" for layer in layers for entry in ("gate_up", "down")] if per_matrix else [*layers]
    assert list(table.layers) == names
    assert table.rule == name
    assert table.per_matrix == per_matrix
    assert set(table.weights.values()) == {128 if per_matrix else 256}
    for rows in table.weighted(1, 1, 2).layers.values():
        assert len(rows) == 6
        assert all(len(row) == len(table.bits) for row in rows)
        assert all(first >= second >= 0 for row in rows for first, second in pairwise(row))


@costs
def test_costs_are_deterministic_and_survive_json(name: str, per_matrix: bool) -> None:
    """Twice the same model, twice the same costs, also after their file form."""
    table = made_costs(name, per_matrix)(random_weights())
    assert made_costs(name, per_matrix)(random_weights()) == table
    assert CostTable.from_json(json.loads(json.dumps(table.to_json()))) == table


@costs
def test_costs_follow_the_experts(name: str, per_matrix: bool) -> None:
    """Renumbering the experts renumbers the costs."""
    order = [3, 0, 5, 1, 4, 2]
    weights = random_weights()
    before = made_costs(name, per_matrix)(weights).weighted(1, 1, 2)
    after = made_costs(name, per_matrix)(weights.renumbered(torch.tensor(order))).weighted(1, 1, 2)
    for layer, rows in before.layers.items():
        for expert, place in enumerate(order):
            assert after.layers[layer][expert] == pytest.approx(rows[place])


@costs
def test_a_cost_rule_names_what_it_needs(name: str, per_matrix: bool) -> None:
    """With only the errors measured that a rule names, it works; without them it says what is missing."""
    weights = random_weights()
    rule = made_costs(name, per_matrix)
    wanted = rule(weights)
    assert ("stats" in weights.asked) == needs_stats(rule)
    measured = {"weight_error", "output_error", "fisher", "output_error_entries", "fisher_entries"}
    assert set(needs_errors(rule)) <= measured
    assert weights.measured is not None
    for kept in (set(needs_errors(rule)), set()):
        absent = dict.fromkeys(measured - kept)
        layers = {layer: replace(stats, **absent) for layer, stats in weights.measured.layers.items()}
        few = replace(weights, measured=replace(weights.measured, layers=layers))
        if kept == set(needs_errors(rule)):
            assert rule(few) == wanted
        else:
            with pytest.raises(UsageError, match=f"no {needs_errors(rule)[0]}"):
                rule(few)


@costs
def test_an_expert_without_tokens_costs_nothing_that_is_not_finite(name: str, per_matrix: bool) -> None:
    """An expert that no token chose has finite costs, and the allocators take the table."""
    table = made_costs(name, per_matrix)(random_weights())
    shapes = shapes_of(table)
    takers = [made() for made in ALLOCATORS.values() if needs_costs(made())]
    if per_matrix:
        takers = [PerMatrix(taker) for taker in takers if getattr(taker, "takes_entries", False)]
    assert takers
    for allocator in takers:
        allocator(shapes, Budget(2), table).check(shapes)


# ---- allocators ----


def guide(name: str, scores: Scores = SCORES) -> Scores | CostTable:
    """The scores, or for an allocator that needs costs an error of `score * 4^-bits`."""
    if not needs_costs(ALLOCATORS[name]()):
        return scores
    layers = {
        layer: tuple(tuple(value * 4.0**-bits for bits in PACKED_WIDTHS) for value in values)
        for layer, values in scores.layers.items()
    }
    return CostTable("r", PACKED_WIDTHS, layers)


def plan_or_interval(name: str, bits: float) -> BitPlan | str:
    """The plan, or what the refusal says."""
    try:
        return ALLOCATORS[name]()(SHAPES, Budget(bits), guide(name))
    except BudgetInfeasible as error:
        return str(error)


@allocators
@pytest.mark.parametrize("bits", BUDGETS)
def test_plans_keep_the_budget_or_name_what_can_be_reached(name: str, bits: float) -> None:
    """A plan never exceeds the budget and passes its own check; a refusal says the value and the way out."""
    found = plan_or_interval(name, bits)
    if isinstance(found, str):
        assert f"--bits {bits:g} is out of reach" in found
        assert "interval is [" in found or "give one of" in found
        return
    found.check(SHAPES)
    assert found.reached_bits(SHAPES) <= bits + 1e-9
    assert found.requested_bits == bits


@allocators
def test_some_budget_is_refused_and_some_is_met(name: str) -> None:
    """No allocator takes anything, none refuses everything."""
    kinds = {isinstance(plan_or_interval(name, bits), str) for bits in BUDGETS}
    assert kinds == {True, False}


@allocators
def test_plans_are_deterministic_and_survive_json(name: str) -> None:
    """Twice the same scores, twice the same plan, also after its file form; the reached average is in the file."""
    plan = ALLOCATORS[name]()(SHAPES, Budget(2), None if name == "uniform" else guide(name))
    again = ALLOCATORS[name]()(SHAPES, Budget(2), None if name == "uniform" else guide(name))
    data = json.loads(json.dumps(plan.to_json(SHAPES)))
    assert plan == again == BitPlan.from_json(data)
    assert data["reached_bits"] == plan.reached_bits(SHAPES)


@allocators
def test_more_important_experts_never_get_fewer_bits(name: str) -> None:
    """Within a layer widths fall with the score, equal scores are served in order of index."""
    for bits in BUDGETS:
        plan = plan_or_interval(name, bits)
        if isinstance(plan, str):
            continue
        for layer, values in SCORES.layers.items():
            widths = plan.layers[layer].gate_up
            order = sorted(range(len(values)), key=lambda expert: (-values[expert], expert))
            assert all(widths[first] >= widths[second] for first, second in pairwise(order))


@allocators
def test_scores_decide_where_there_is_a_choice(name: str) -> None:
    """Reversed scores give reversed widths; only the uniform allocator does not care."""
    bits = 2 if name == "uniform" else 2.5
    straight = Scores("r", {shape.name: tuple(map(float, range(shape.experts))) for shape in SHAPES})
    backward = Scores("r", {name: values[::-1] for name, values in straight.layers.items()})
    one = ALLOCATORS[name]()(SHAPES, Budget(bits), guide(name, straight)).layers["a"].gate_up
    other = ALLOCATORS[name]()(SHAPES, Budget(bits), guide(name, backward)).layers["a"].gate_up
    assert one == other[::-1]
    assert (one == other) == (name == "uniform")


# ---- quantizers ----


@quantizers
def test_error_falls_as_bits_rise(name: str, symmetric: bool, group: int) -> None:
    """Every further bit pays, down to a small error at 8 bits."""
    weight = gaussian()
    quantizer = QUANTIZERS[name](group_size=group, symmetric=symmetric)
    errors = [rms_error(weight, quantizer(weight, bits)) for bits in PACKED_WIDTHS]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 0.02


@quantizers
@pytest.mark.parametrize("bits", PACKED_WIDTHS)
def test_parts_are_in_range(name: str, symmetric: bool, group: int, bits: int) -> None:
    """Codes fit their width, dtypes and shapes are those of the format, one bit has no zero points."""
    made = QUANTIZERS[name](group_size=group, symmetric=symmetric)(gaussian(5, 70), bits)
    assert made.codes.dtype == made.scale_codes.dtype == torch.uint8
    assert made.row_scale.dtype == torch.bfloat16
    assert int(made.codes.max()) < 2**bits
    assert made.symmetric == (symmetric or bits == 1)
    assert (made.bits, made.group_size, made.columns) == (bits, group, 70)
    assert made.dequantize().shape == (5, 70)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weights_on_a_stored_grid_come_back_exactly(name: str, bits: int) -> None:
    """Weights on a stored grid come back to the last bit: zero point 0, step 255 times a bfloat16, both ends used."""
    top = 2**bits - 1
    codes = (torch.arange(64) * 5 + torch.arange(4)[:, None]) % (top + 1)
    weight = codes.float() * 255 / 1024  # zero point 0, scale 255 * 2^-10
    assert torch.equal(QUANTIZERS[name]()(weight, bits).dequantize(), weight)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_one_bit_is_sign_times_mean(name: str) -> None:
    """One bit is `sign(w) * mean|w|` of each group, up to the rounding of the stored scale; padding has no share."""
    weight = gaussian(6, 100)
    made = QUANTIZERS[name](group_size=64)(weight, 1)
    mean = [weight[:, :64].abs().mean(dim=1, keepdim=True), weight[:, 64:].abs().mean(dim=1, keepdim=True)]
    wanted = torch.cat([mean[0].expand(-1, 64), mean[1].expand(-1, 36)], dim=1)
    found = made.dequantize()
    assert torch.equal(found > 0, weight > 0)
    assert ((found.abs() - wanted).abs() <= made.row_scale.float()[:, None] * 0.251).all()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("value", [0.0, 1e-12])
def test_one_bit_takes_zero_and_tiny_weights_as_positive(name: str, value: float) -> None:
    """sign(0) is +, as in MC's and the router-norm paper's code, and a tiny positive weight keeps its sign."""
    weight = gaussian(1, 64)
    weight[0, 5] = value
    assert QUANTIZERS[name]()(weight, 1).dequantize()[0, 5] > 0


@quantizers
def test_rows_do_not_know_each_other(name: str, symmetric: bool, group: int) -> None:
    """A row alone gives the same bits as among others, so that chunking and threads cannot matter."""
    quantizer = QUANTIZERS[name](group_size=group, symmetric=symmetric)
    for columns in (group, 70):
        weight = gaussian(9, columns)
        for bits in PACKED_WIDTHS:
            whole = quantizer(weight, bits)
            assert all(same(rows_of(whole, row), quantizer(weight[row : row + 1], bits)) for row in (0, 4, 8))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_chunks_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another size of the row chunks, or another number of threads, gives the same bits."""
    quantizer, weight = QUANTIZERS[name](), gaussian(100, 200)
    whole = quantizer(weight, 3)
    monkeypatch.setattr("moesaic.quantize.grid.CHUNK_WEIGHTS", 700)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert same(quantizer(weight, 3), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rows_or_group", ["row", "group"])
def test_zero_rows_and_groups_stay_zero(name: str, symmetric: bool, rows_or_group: str) -> None:
    """Where all weights are zero they stay zero: a dead neuron must not come to life."""
    weight = gaussian(4, 256)
    dead = (slice(1, 2), slice(0, 256)) if rows_or_group == "row" else (slice(2, 3), slice(128, 256))
    weight[dead] = 0
    quantizer = QUANTIZERS[name](symmetric=symmetric)
    assert [float(quantizer(weight, bits).dequantize()[dead].abs().max()) for bits in PACKED_WIDTHS] == [0.0] * 5


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", PACKED_WIDTHS)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-30, 1e-12, 1.0, 1e4, 1e30])
def test_no_magnitude_gives_nan(name: str, bits: int, size: float) -> None:
    """Subnormal, tiny, large: the result is finite, and from 1e-30 on as good as for ordinary weights."""
    weight = gaussian(8, 100, size=1.0) * size
    for symmetric in (False, True):
        made = QUANTIZERS[name](symmetric=symmetric)(weight, bits)
        assert made.dequantize().isfinite().all()
        assert int(made.codes.max()) < 2**bits
        if size >= 1e-30:
            assert rms_error(weight, made) < [0.65, 0.6, 0.3, 0.15, 0.02][PACKED_WIDTHS.index(bits)]


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", PACKED_WIDTHS)
def test_mixed_magnitudes_in_a_row(name: str, bits: int) -> None:
    """A group a million times smaller than its neighbour stays finite and does not spoil the neighbour."""
    weight = gaussian(4, 128, size=1.0)
    weight[:, 64:] *= 1e-6
    made = QUANTIZERS[name]()(weight, bits)
    alone = QUANTIZERS[name]()(weight[:, :64], bits)
    assert torch.equal(made.dequantize()[:, :64], alone.dequantize())
    assert made.dequantize()[:, 64:].abs().max() < 0.05


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_float_dtype_and_any_strides(name: str, dtype: torch.dtype) -> None:
    """The input's dtype and memory order do not matter, and the input is not changed."""
    weight = gaussian(10, 70).bfloat16().to(torch.float16).to(dtype)
    before = weight.clone()
    wanted = QUANTIZERS[name]()(weight.float(), 3)
    assert same(QUANTIZERS[name]()(weight, 3), wanted)
    assert same(QUANTIZERS[name]()(weight.T.contiguous().T, 3), wanted)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", PACKED_WIDTHS)
@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 127])
def test_padding_columns_are_harmless(name: str, bits: int, columns: int) -> None:
    """A last group of few columns is quantized as well as a full one."""
    weight = gaussian(8, columns)
    limit = [0.85, 0.6, 0.3, 0.15, 0.02][PACKED_WIDTHS.index(bits)]
    assert rms_error(weight, QUANTIZERS[name]()(weight, bits)) < limit


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("value", [0.37, -0.37])
def test_constant_and_one_sided_groups(name: str, bits: int, value: float) -> None:
    """Groups that are all positive or all negative, even all equal, are met at the end of the grid."""
    weight = torch.full((3, 64), value)
    assert rms_error(weight, QUANTIZERS[name]()(weight, bits)) < 0.01


@quantizers
def test_width_the_format_lacks_is_refused(name: str, symmetric: bool, group: int) -> None:
    """5 bits, 16 bits and odd groups are errors and not silently something else."""
    quantizer = QUANTIZERS[name](group_size=group, symmetric=symmetric)
    for bits in (0, 5, 16):
        with pytest.raises(ValueError, match="bits must be"):
            quantizer(gaussian(2, 64), bits)
    with pytest.raises(ValueError, match="group_size must be"):
        QUANTIZERS[name](group_size=48, symmetric=symmetric)(gaussian(2, 64), 2)


# ---- skipping policies ----


def state_of(policy: object, k: int = 4) -> dict[str, torch.Tensor]:
    """A state that skips something."""
    state = {"threshold": torch.tensor(0.6), "means": torch.linspace(1, 0.2, k)}
    if isinstance(policy, Otp):
        state |= policy.start(k, 6, torch.Generator().manual_seed(0), experts=8) | {"threshold": torch.tensor(0.5)}
    return state


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("k", [2, 4, 8])
def test_policies_keep_one_and_the_sum(name: str, k: int) -> None:
    """Every policy gives a priority a place, keeps an expert a token, and the sum of the weights."""
    policy, routed = POLICIES[name](), random_routed(k=k)
    priority = policy(routed, state_of(policy, k))
    assert priority.shape == routed.weights.shape
    assert not priority.isnan().any()
    kept = decide(policy, routed, state_of(policy, k))
    assert bool(kept.any(dim=-1).all())
    torch.testing.assert_close(rescale(routed.weights, kept).sum(-1), routed.weights.sum(-1))


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_deterministic_and_change_nothing(name: str) -> None:
    """The same routing gives the same decision, and neither routing nor state are changed."""
    policy, routed = POLICIES[name](), random_routed()
    state = state_of(policy)
    before = {key: tensor.clone() for key, tensor in state.items()}
    first = decide(policy, routed, state)
    assert torch.equal(decide(policy, random_routed(), state), first)
    for key in ("weights", "experts", "hidden"):
        assert torch.equal(getattr(routed, key), getattr(random_routed(), key))
    assert all(torch.equal(state[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", [name for name, made in POLICIES.items() if made.causal])
def test_causal_policies_see_one_token(name: str) -> None:
    """A policy that calls itself causal gives a token alone what it gives it among others."""
    policy, routed = POLICIES[name](), random_routed()
    together = policy(routed, state_of(policy))
    for row in range(0, 40, 7):
        keys = ("weights", "experts", "hidden", "sequences", "significance")
        one = dataclasses.replace(routed, **{key: getattr(routed, key)[row : row + 1] for key in keys})
        torch.testing.assert_close(policy(one, state_of(policy))[0], together[row])
