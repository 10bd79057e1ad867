"""The oracle of GPTQ against what needs no oracle."""

from __future__ import annotations

import numpy as np

from tests.oracles.obq import damped, obq, output_error


def test_the_last_columns_take_the_best_step() -> None:
    """With all columns but one fixed, what is left is the least squares solution for that column."""
    random = np.random.default_rng(0)
    weight, inputs = random.normal(size=(3, 4)), random.normal(size=(50, 4))
    hessian = damped(inputs.T @ inputs / 50, 0.01)
    wanted, made = obq(weight, hessian, [0, 1, 2, 3], lambda _, values: np.round(values))
    error = (weight - made)[:, :3]
    best = weight[:, 3] + error @ hessian[:3, 3] / hessian[3, 3]
    np.testing.assert_allclose(wanted[:, 3], best, rtol=1e-9)


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    """A diagonal Hessian gives plain rounding in any order, and the error is the plain weighted sum."""
    weight = np.random.default_rng(1).normal(size=(2, 5)) * 3
    moment = np.diag([1.0, 2.0, 3.0, 4.0, 5.0])
    wanted, made = obq(weight, damped(moment, 0.01), [4, 2, 0, 1, 3], lambda _, values: np.round(values))
    np.testing.assert_array_equal(wanted, weight)
    np.testing.assert_array_equal(made, np.round(weight))
    naive = sum(moment[k, k] * (weight[n, k] - made[n, k]) ** 2 for n in range(2) for k in range(5))
    np.testing.assert_allclose(output_error(weight, made, moment), naive)
