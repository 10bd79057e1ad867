"""The intervals of experiments cover what they say they cover."""

import numpy as np
import pytest
from experiments.intervals import bootstrap, over_runs


def test_student_interval_covers_the_mean() -> None:
    """Of many intervals from five normal draws about 95 % hold the true mean."""
    rng = np.random.default_rng(0)
    found = [over_runs(rng.normal(3.0, 1.0, 5).tolist()) for _ in range(2000)]
    assert 0.93 < np.mean([each["low"] <= 3.0 <= each["high"] for each in found]) < 0.97


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    """Resampling a mean gives the width that theory gives."""
    values = np.random.default_rng(1).normal(0.0, 2.0, 400)
    found = bootstrap(lambda x: float(x.mean()), values)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 2.0 / 20, rel=0.15)


def test_columns_are_drawn_together() -> None:
    """Pairs stay pairs: the correlation of a column with itself is 1 in every draw."""
    values = np.arange(20.0)
    found = bootstrap(lambda x, y: float(np.corrcoef(x, y)[0, 1]), values, values)
    assert (found["low"], found["high"]) == pytest.approx((1.0, 1.0))


def test_unequal_columns_are_refused() -> None:
    """Columns of different lengths are an error and not cut."""
    with pytest.raises(ValueError, match="items"):
        bootstrap(lambda x, y: 0.0, [1.0], [1.0, 2.0])
