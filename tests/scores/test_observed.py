"""What a packed folder notes of every expert."""

from __future__ import annotations

import pytest

from moesaic.scores import MaxVar, Reorder, RouterNorm
from moesaic.scores.observed import observe
from tests.scores.made_up import MadeUp, random_weights


def test_norms_and_max_var_are_those_of_the_rules() -> None:
    """The notes hold the numbers that the rules would rank by."""
    weights = random_weights()
    noted = observe(weights)
    change = RouterNorm()(weights).layers
    for layer, scores in change.items():
        norms = zip(noted["router_norm"][layer], noted["router_norm_initial"][layer], strict=True)
        assert [final - initial for final, initial in norms] == pytest.approx([-score for score in scores])
    assert {layer: tuple(row) for layer, row in noted["max_var"].items()} == MaxVar()(weights).layers


def test_what_the_scores_hold_is_not_read_again() -> None:
    """Where MaxVar is in the scores already, no expert is read for the notes."""
    for rule in (MaxVar(), Reorder(base=RouterNorm(), by=MaxVar())):
        weights = random_weights()
        scores = rule(weights).to_json()
        weights.asked.clear()
        assert "max_var" not in observe(weights, scores)
        assert "first_layer" not in weights.asked


def test_without_initial_routers() -> None:
    """What is not known is not there; scores of another rule or costs do not stand for MaxVar."""
    made = random_weights()
    weights = MadeUp(made.routers, made.first)
    assert set(observe(weights)) == {"router_norm", "max_var"}
    assert "max_var" in observe(weights, RouterNorm()(weights).to_json())
    assert "max_var" in observe(weights, {"format": "moesaic-costs/1"})
