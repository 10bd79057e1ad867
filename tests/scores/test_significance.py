"""Frequency times routing weight, against the factors that PMQ's cost carries."""

from __future__ import annotations

import pytest

from moesaic.scores.quant_error import QuantError
from moesaic.scores.significance import Significance
from tests.scores.made_up import random_weights


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.0, 1.5), (2.0, 0.0)])
@pytest.mark.parametrize("normalised", [False, True])
def test_product_of_the_factors_of_quant_error(alpha: float, beta: float, normalised: bool) -> None:
    """The score is phi^alpha * w^beta with the very factors of PMQ's cost table."""
    weights = random_weights()
    table = QuantError(normalised=normalised)(weights)
    scores = Significance(alpha=alpha, beta=beta, normalised=normalised)(weights)
    for layer, found in scores.layers.items():
        factors = zip(table.frequency[layer], table.routing_weight[layer], strict=True)
        assert found == pytest.approx([phi**alpha * w**beta for phi, w in factors])


def test_knobs_change_the_result() -> None:
    """Each knob is used."""
    weights = random_weights()
    made = [Significance(), Significance(alpha=2.0), Significance(beta=2.0), Significance(normalised=True)]
    assert len({rule(weights).layers["layers.0"] for rule in made}) == 4
