"""PMQ against the published allocations and against looking at every plan."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.allocation import layer_plans, pmq_objective, published

from moesaic.allocate import Pmq
from moesaic.allocate.choices import shapes_of
from moesaic.allocate.pmq import EXPONENTS
from moesaic.errors import BudgetInfeasible, UsageError
from moesaic.records import Budget, CostTable, LayerShape

whole_costs = st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), min_size=2, max_size=5)


def one_layer(rows: list[list[float]], widths: tuple[int, ...]) -> CostTable:
    """Finished costs of one layer."""
    return CostTable("r", widths, {"L": tuple(tuple(row[: len(widths)]) for row in rows)})


def bits_of(costs: CostTable, bits: float, **knobs: object) -> tuple[int, ...]:
    """The widths of the layer `L`."""
    return Pmq(**knobs)(shapes_of(costs), Budget(bits), costs).layers["L"].gate_up  # type: ignore[arg-type]


def mixtral() -> tuple[CostTable, dict[str, list[list[int]]]]:
    """The published factors as costs, and the published bits by total."""
    data = published("pmq_mixtral_8x7b.json")
    names = [f"model.layers.{layer}.mlp.experts" for layer in range(data["layers"])]
    return CostTable(
        rule="published",
        bits=tuple(data["bits"]),
        layers={name: tuple(map(tuple, rows)) for name, rows in zip(names, data["quantization_error"], strict=True)},
        frequency=dict(zip(names, map(tuple, data["selection_count"]), strict=True)),
        routing_weight=dict(zip(names, map(tuple, data["routing_weight_sum"]), strict=True)),
    ), data["allocations"]


def test_published_bits_of_mixtral() -> None:
    """The released form returns the published bits of all 32 layers at each published total, exactly."""
    costs, allocations = mixtral()
    for total, wanted in allocations.items():
        plan = Pmq()(shapes_of(costs), Budget(int(total) / 8), costs)
        assert [list(bits.gate_up) for bits in plan.layers.values()] == wanted


@pytest.mark.parametrize("form", EXPONENTS)
def test_optimum_on_published_factors_at_other_totals(form: str) -> None:
    """On real factors and at any total the plan costs no more than the best of all 6561 plans."""
    costs, _ = mixtral()
    layer = next(iter(costs.layers))
    rows = pmq_objective(
        list(map(list, costs.layers[layer])),
        list(costs.frequency[layer]),
        list(costs.routing_weight[layer]),
        EXPONENTS[form],
    )
    for total in (11, 13, 18, 23):
        found = Pmq(form=form)(shapes_of(costs), Budget(total / 8), costs).layers[layer].gate_up
        best = layer_plans(rows, (1, 2, 3), total, (3, 2))[0]
        assert sum(row[width - 1] for row, width in zip(rows, found, strict=True)) == pytest.approx(best[0], rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    rows=whole_costs,
    widths=st.sampled_from([(1, 2, 3), (1, 2, 3, 4), (2, 3), (1, 3, 8, 16), (2,)]),
    extra=st.integers(0, 12),
    at_least_one=st.sampled_from([(), (3,), (3, 3), (3, 1)]),
)
def test_every_plan_was_considered(
    rows: list[list[float]], widths: tuple[int, ...], extra: int, at_least_one: tuple[int, ...]
) -> None:
    """Cheapest, then fewest bits, then the first experts first: the same plan as by looking at all of them."""
    at_least_one = tuple(width for width in at_least_one if width in widths)
    forced = sum(at_least_one) + widths[0] * (len(rows) - len(at_least_one))
    total = min(forced + extra, widths[-1] * len(rows))
    rows = [row[: len(widths)] for row in rows]
    best = layer_plans(rows, widths, total, at_least_one)[0]
    found = bits_of(one_layer(rows, widths), total / len(rows), at_least_one=at_least_one)
    assert found == tuple(-width for width in best[2])


def test_levels_restrict_the_choice() -> None:
    """The knob `levels` leaves out widths."""
    costs = one_layer([[9.0, 5.0, 1.0], [9.0, 8.0, 7.0]], (1, 2, 3))
    assert bits_of(costs, 2, at_least_one=()) == (3, 1)
    assert bits_of(costs, 2, levels=(1, 2), at_least_one=()) == (2, 2)


def test_form_changes_the_result() -> None:
    """The knob `form`: squared errors favour the expert with the larger one."""
    factors = {"L": (1.0, 1.0)}, {"L": (3.0, 1.0)}
    costs = CostTable("r", (1, 2), {"L": ((3.0, 0.0), (6.0, 0.0))}, {}, *factors)
    assert bits_of(costs, 1.5, form="released") == (2, 1)
    assert bits_of(costs, 1.5, form="paper") == (1, 2)
    with pytest.raises(ValueError, match="released, paper"):
        Pmq(form="other")


def test_at_least_one_changes_the_result() -> None:
    """The knob `at_least_one`: by default a 3 and a 2 where the costs have them."""
    costs = one_layer([[9.0, 5.0, 1.0], [9.0, 5.0, 1.0], [9.0, 8.9, 8.8]], (1, 2, 3))
    assert bits_of(costs, 7 / 3, at_least_one=()) == (3, 3, 1)
    assert sorted(bits_of(costs, 7 / 3)) == [2, 2, 3]
    assert bits_of(one_layer([[9.0, 5.0], [9.0, 5.0]], (1, 3)), 2) == (3, 1)


def test_layers_may_differ_in_experts() -> None:
    """Each layer has the same average, whatever its number of experts."""
    costs = CostTable("r", (1, 2, 3), {"a": ((9.0, 4.0, 1.0),) * 4, "b": ((9.0, 4.0, 1.0),) * 7})
    plan = Pmq()(shapes_of(costs), Budget(2), costs)
    assert [sum(bits.gate_up) for bits in plan.layers.values()] == [8, 14]
    assert plan.method == "r, pmq as given 1/2/3"


def test_budgets_and_layers_that_cannot_be() -> None:
    """A budget below what the required widths take is refused with the interval, and so is a layer without room."""
    costs = one_layer([[9.0, 5.0, 1.0]] * 8, (1, 2, 3))
    with pytest.raises(BudgetInfeasible, match=r"\[1.375, 3\]"):
        bits_of(costs, 1.25)
    assert sum(bits_of(costs, 1.375)) == 11
    with pytest.raises(UsageError, match="L has 1 experts"):
        bits_of(one_layer([[9.0, 5.0, 1.0]], (1, 2, 3)), 2)


def test_a_wide_layer_with_wide_levels() -> None:
    """512 experts with levels up to 8 bits are no more than a moment's work, and spend the budget."""
    rows = [[float((i * 7919) % 513) * 4.0**-width for width in (1, 2, 3, 4, 8)] for i in range(512)]
    costs = CostTable("r", (1, 2, 3, 4, 8), {"L": tuple(map(tuple, rows))})
    shapes = [LayerShape("L", 512, 20, 10)]
    assert Pmq()(shapes, Budget(2.5), costs).reached_bits(shapes) == 2.5
