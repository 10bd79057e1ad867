"""Experts rarely chosen in a sequence."""

from __future__ import annotations

import torch

from moesaic.prune import Pesf
from tests.prune.made_up import EXPERTS, of_weights, random_routed


def test_counts_by_sequence() -> None:
    """Counts over the average, by hand: 3 tokens x 2 places over 8 experts are 0.75 choices an expert."""
    routed = of_weights([[0.6, 0.4]] * 4, [[0, 1], [0, 2], [0, 1], [5, 0]], sequences=torch.tensor([0, 0, 0, 1]))
    found = Pesf()(routed, {})
    one = 3 * 2 / EXPERTS
    other = 1 * 2 / EXPERTS
    wanted = [[3 / one, 2 / one], [3 / one, 1 / one], [3 / one, 2 / one], [1 / other, 1 / other]]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_padding_counts_for_nothing() -> None:
    """The same sequence with padding beside it has the same priorities."""
    routed = random_routed(batch=1)
    whole = Pesf()(routed, {})
    assert routed.sequences is not None
    padded = Pesf()(
        of_weights(
            [*routed.weights.tolist(), [0.7, 0.1, 0.1, 0.1]],
            [*routed.experts.tolist(), [0, 1, 2, 3]],
            sequences=torch.cat([routed.sequences, torch.tensor([-1])]),
        ),
        {},
    )
    torch.testing.assert_close(padded[:-1], whole)
    assert not padded[-1].any()


def test_decoding_skips_nothing_up_to_the_average() -> None:
    """One token of a sequence has chosen each of its experts once, `E / k` times the average."""
    found = Pesf()(of_weights([[0.9, 0.1]], [[3, 4]], sequences=torch.tensor([0])), {})
    assert found.tolist() == [[EXPERTS / 2, EXPERTS / 2]]
