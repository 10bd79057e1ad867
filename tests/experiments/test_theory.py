"""The analysed model: its fast training and quantizer against slow ones, and the directions that are safe to assert."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.theory import data
from experiments.theory.__main__ import finished
from experiments.theory.cases import cases
from experiments.theory.constants import GROUPS
from experiments.theory.measure import _first_from_which, order
from experiments.theory.model import Weights, outputs, tables
from experiments.theory.plans import lifted, plan
from experiments.theory.quantizer import WIDTHS, rounded
from experiments.theory.readings import read
from experiments.theory.roles import by_value
from experiments.theory.setting import Setting
from experiments.theory.summary import crossings, interval, summary
from experiments.theory.tables import markdown
from experiments.theory.train import initial, train
from experiments.theory.variance import TIMES, widened
from tests.oracles import theory_training

from moesaic.quantize import RTN
from moesaic.records import PACKED_WIDTHS

SMALL = Setting(
    a=0.3,
    tokens=4,
    patterns=10,
    dimension=14,
    experts=4,
    neurons=3,
    batch=5,
    steps=6,
    seeds=2,
    init=0.2,
    router_init=0.2,
)
STEPS = 6


def batches(setting: Setting, frames: torch.Tensor) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The mini-batches that training draws, as vectors, by seed."""
    draws = data.generators(setting, 3)
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(setting.seeds)]
    for _ in range(STEPS):
        features = data.draw_features(setting, draws, setting.batch)
        tokens = data.draw_tokens(setting, draws, features)
        inside = data.add_noise(setting, draws, tokens) if setting.noise else torch.eye(setting.patterns)[tokens]
        vectors = torch.einsum("sbnp,sdp->sbnd", inside, frames)
        for seed in range(setting.seeds):
            labels = [(1, -1, -1, 1)[k] for k in features[seed].tolist()]
            found[seed].append((vectors[seed].double().numpy(), np.array(labels, dtype=float)))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "logistic", "features": 4},
        {"loss": "linear", "balanced": True},
        {"noise": 0.1, "chosen": 3},
        {"axis_aligned": True},
    ],
)
def test_training_agrees_with_loops(changes: dict[str, object]) -> None:
    """Training all seeds in pattern coordinates gives what SGD on vectors gives, a sequence at a time."""
    setting = replace(SMALL, **changes)
    frames = data.frames(setting)
    start = initial(setting, frames)
    found = train(setting, frames, [0, STEPS])[STEPS]
    for seed, drawn in enumerate(batches(setting, frames)):
        experts, router = theory_training.train(
            start.experts[seed].double().numpy(),
            start.router[seed].double().numpy(),
            start.signs.tolist(),
            drawn,
            chosen=setting.chosen,
            rate=setting.rate,
            router_rate=setting.router_rate,
            loss=setting.loss,
        )
        assert np.abs(experts - start.experts[seed].numpy()).max() > 1e-3  # something was learnt
        np.testing.assert_allclose(found.experts[seed], experts, atol=2e-6)
        np.testing.assert_allclose(found.router[seed], router, atol=2e-6)


def test_outputs_agree_with_loops() -> None:
    """f(x) from tables is f(x) of the definition."""
    frames = data.frames(SMALL)
    weights = initial(SMALL, frames)
    draws = data.generators(SMALL, 4)
    tokens = data.draw_tokens(SMALL, draws, torch.tensor([[0, 1, 1], [1, 0, 0]]))
    found = outputs(*tables(weights.in_patterns(frames)), weights.signs, tokens, SMALL.chosen)
    for seed in range(SMALL.seeds):
        for at in range(3):
            sequence = frames[seed].T[tokens[seed, at]].double().numpy()
            slow, _ = theory_training.forward(
                weights.experts[seed].double().numpy(),
                weights.router[seed].double().numpy(),
                weights.signs.tolist(),
                sequence,
                SMALL.chosen,
            )
            assert float(found[seed, at]) == pytest.approx(slow, abs=1e-5)


def test_a_seed_does_not_depend_on_the_others() -> None:
    """More seeds in a run leave the earlier ones as they were, and the same run twice gives the same weights."""
    frames = data.frames(SMALL)
    two = train(SMALL, frames, [STEPS])[STEPS]
    again = train(SMALL, frames, [STEPS])[STEPS]
    more = replace(SMALL, seeds=3)
    three = train(more, data.frames(more), [STEPS])[STEPS]
    assert torch.equal(two.experts, again.experts)
    assert torch.equal(two.router, again.router)
    torch.testing.assert_close(three.experts[:2], two.experts)
    torch.testing.assert_close(three.router[:2], two.router)


def test_frames_and_sequences_are_as_described() -> None:
    """Patterns are orthonormal, and a sequence has one task-relevant token, at the shares asked for."""
    setting = replace(SMALL, features=4, a=0.1)
    frames = data.frames(setting)
    torch.testing.assert_close(frames.transpose(1, 2) @ frames, torch.eye(10).expand(2, -1, -1), atol=1e-5, rtol=0)
    draws = data.generators(setting, 3)
    features = data.draw_features(setting, draws, 4000)
    tokens = data.draw_tokens(setting, draws, features)
    assert bool(((tokens < 4).sum(dim=2) == 1).all())
    assert torch.equal(tokens.amin(dim=2), features)
    shares = torch.bincount(features.flatten(), minlength=4) / features.numel()
    torch.testing.assert_close(shares, torch.tensor([0.45, 0.05, 0.45, 0.05]), atol=0.02, rtol=0)


@pytest.mark.parametrize("bits", PACKED_WIDTHS)
def test_quantizer_is_rtn_minmax(bits: int) -> None:
    """Where the project's quantizer takes the width and the group, both give the same weights to the bit."""
    weights = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(bits))
    slow = [RTN(clip=False, group_size=128)(each, bits).dequantize() for each in weights]
    assert torch.equal(rounded(weights, bits), torch.stack(slow))


def test_quantizer_error_halves_with_every_bit() -> None:
    """The widths that cannot be packed fit between those that can."""
    weights = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    errors = [float((rounded(weights, bits) - weights).square().mean().sqrt()) for bits in WIDTHS[1:]]
    for wide, narrow in itertools.pairwise(errors):
        assert 1.8 < wide / narrow < 2.6


def test_plans_of_readings_are_quantized_models() -> None:
    """Adding up contributions gives the margins of the model whose experts really have these bits."""
    frames = data.frames(SMALL)
    weights = train(SMALL, frames, [STEPS])[STEPS]
    readings = read(SMALL, frames, weights)
    bits = torch.tensor([[0, 1, 3, 8], [2, 2, 0, 5]])
    experts = weights.experts.clone()
    for seed, expert in zip(*bits.nonzero(as_tuple=True), strict=True):
        experts[seed, expert] = rounded(weights.experts[seed, expert], int(bits[seed, expert]))
    mixed = Weights(experts, weights.router, weights.signs)
    draws = data.generators(SMALL, 4)
    tokens = data.draw_tokens(SMALL, draws, readings.features)
    found = outputs(*tables(mixed.in_patterns(frames)), mixed.signs, tokens, SMALL.chosen) * readings.labels
    torch.testing.assert_close(readings.margins(bits), found, atol=1e-5, rtol=1e-4)


def test_roles_need_the_own_label_and_a_clear_lead() -> None:
    """A value on a feature of the other label, or one that irrelevant patterns come near to, is nothing learned."""
    setting = replace(SMALL, features=4, patterns=6, dimension=6, experts=4)
    values = torch.full((1, 4, 6), 0.1)
    values[0, 0, 0] = 1.0  # prevalent, label +1
    values[0, 1, [0, 3]] = 1.0  # both features of label +1
    values[0, 2, 0] = 1.0  # of the other label
    values[0, 3, 1] = 0.19  # too little
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    roles = by_value(setting, values, signs)
    assert [GROUPS[group] for group in roles.group[0].tolist()] == ["prevalent", "both", "none", "none"]
    assert roles.activation[0].tolist() == pytest.approx([1.0, 1.0, 0.1, 0.19])


def test_bits_needed_by_hand() -> None:
    """The smallest width from which on all is fine, and where a noise that halves with every bit crosses the limit."""
    fine = torch.tensor([[True, False, True, True], [True, True, True, True], [False, False, False, False]])
    assert _first_from_which(fine).tolist() == [3, 1, 5]
    falls, small, none = [0.125, 0.0625, 2**-5.5, 0.01], [0.03, 0.02, 0.01, 0.005], [None] * 4
    found = crossings(list(zip(falls, small, none, strict=True)))
    assert found == [pytest.approx(2 + 1 / 1.5), None, None]


def test_order_counts_pairs() -> None:
    """Half for ties, NaN where a group is empty."""
    values = torch.tensor([[3.0, 1.0, 1.0, 2.0]])
    upper, lower = torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, True]])
    assert float(order(values, upper, lower)) == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert bool(order(values, upper, ~(upper | lower)).isnan())


def test_plans_keep_the_budget_and_the_reordering_lifts() -> None:
    """Half of the experts get the high width, the best scores first; a wide expert is lifted."""
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert plan(scores, 4, 2, 3.0).tolist() == [[4, 4, 2, 2]]
    wide = lifted(scores, torch.tensor([[1.0, 1.0, 1.0, 3.0]]), 3.0)
    assert plan(wide, 4, 2, 3.0).tolist() == [[4, 2, 2, 4]]
    assert plan(lifted(scores, torch.tensor([[1.0, 1.0, 1.0, 2.9]]), 3.0), 4, 2, 3.0).tolist() == [[4, 4, 2, 2]]


def test_injected_variance_leaves_the_function() -> None:
    """Wide neurons say the same about every pattern, and their variance is what was asked for."""
    frames = data.frames(SMALL)
    weights = initial(SMALL, frames)
    victims = torch.tensor([[True, False, False, False], [False, False, True, True]])
    wide = widened(SMALL, frames, weights, victims)
    torch.testing.assert_close(
        wide.in_patterns(frames).experts, weights.in_patterns(frames).experts, atol=1e-5, rtol=1e-4
    )
    grown = wide.experts.var(dim=3).mean(dim=2) / weights.experts.var(dim=3).mean(dim=2)
    assert bool((grown[victims] > TIMES / 2).all())
    assert bool((grown[~victims] == 1).all())
    with pytest.raises(ValueError, match="orthogonal"):
        widened(replace(SMALL, patterns=14), data.frames(replace(SMALL, patterns=14)), weights, victims)


def test_impossible_settings_are_refused() -> None:
    """A share above one half, or fewer dimensions than patterns, is an error that shows the setting."""
    for changes in ({"a": 0.7}, {"dimension": 5}, {"features": 3}, {"loss": "squared"}, {"chosen": 9}):
        with pytest.raises(ValueError, match="got Setting"):
            replace(SMALL, **changes)
    with pytest.raises(ValueError, match="bits"):
        rounded(torch.ones(1, 4), 9)


def test_intervals_say_how_many_seeds_remain() -> None:
    """Seeds without a value are left out and counted."""
    assert interval([1.0, None, 3.0])[3] == 2
    assert interval([None, None]) is None


def test_a_quick_run_goes_on_and_shows_what_is_safe(tmp_path: Path) -> None:
    """Half the quick form: the directions that hold clearly, and finished cases are not run again."""
    wanted = [case for case in cases(quick=True) if case.track == "four features, logistic"]
    first = finished(tmp_path, wanted[:1], 1)
    line = (tmp_path / "finished.jsonl").read_text(encoding="utf-8")
    (tmp_path / "finished.jsonl").write_text(line + line[:100], encoding="utf-8")  # a kill tore the second
    found = finished(tmp_path, wanted, 1)
    assert found[0] == first[0]
    record = summary(found)
    rare, even = record["cases"]
    for case in (rare, even):
        state = case["steps"][str(case["learnt"] or case["end"])]
        assert state["groups"]["prevalent"]["router_change"][1] > 0  # a learned feature makes the row longer
        assert abs(state["groups"]["none"]["router_change"][0]) < state["groups"]["prevalent"]["router_change"][0] / 5
    state = rare["steps"][str(rare["learnt"] or rare["end"])]
    assert state["order"]["router_change: prevalent > rarer"][1] > 0.5
    assert state["activation_ratio"][1] > 1
    assert "## Bits that a group needs" in markdown(record)
    assert json.loads(json.dumps(record)) == record
