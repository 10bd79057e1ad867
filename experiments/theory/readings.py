"""What every expert adds to every test sequence at every width, so that any plan of bits is a sum.

Routers stay in full precision: who takes which token does not depend on the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import data
from .model import Weights, contributions, contributions_of_vectors, route, tables
from .quantizer import WIDTHS, rounded
from .setting import Setting

FULL = 0  # the place of full precision among the widths
TEST_SEQUENCES = 1000  # a seed, the same number for every feature
NOISY_SEQUENCES = 200  # with noise, where sequences are vectors and take memory


@dataclass(frozen=True)
class Readings:
    """Contributions to the test sequences.

    Attributes:
        setting: of the model.
        parts: `[1 + widths, seeds, experts, number]`; place 0 is full precision, place b is b bits.
        features: of the sequences, `[seeds, number]`.
    """

    setting: Setting
    parts: Tensor
    features: Tensor

    @property
    def labels(self) -> Tensor:
        """`[seeds, number]`"""
        return torch.tensor(data.LABELS)[self.features]

    def margins(self, bits: Tensor) -> Tensor:
        """y f(x) under plans of bits `[seeds, experts]` (0 = full precision). `[seeds, number]`"""
        place = bits[None, ..., None].expand(1, -1, -1, self.parts.shape[-1])
        return self.parts.gather(0, place)[0].sum(dim=1) * self.labels

    def errors(self, bits: Tensor) -> Tensor:
        """Share of wrong answers, by feature. `[seeds, features]`"""
        return self.by_feature((self.margins(bits) <= 0).float())

    def by_feature(self, values: Tensor) -> Tensor:
        """Means over the sequences of every feature, `[seeds, number]` -> `[seeds, features]`."""
        return torch.stack(
            [
                values.masked_fill(self.features != k, 0).sum(dim=1) / (self.features == k).sum(dim=1)
                for k in range(self.setting.features)
            ],
            dim=1,
        )

    def test_error(self, errors: Tensor) -> Tensor:
        """Errors by feature weighed with the features' shares. `[seeds]`"""
        return errors @ data.shares(self.setting, balanced=False)


def read(setting: Setting, frames: Tensor, weights: Weights, widths: tuple[int, ...] = WIDTHS) -> Readings:
    """Quantize every expert to every width, 1 upwards, and run the test sequences."""
    draws = data.generators(setting, 4)
    number = NOISY_SEQUENCES if setting.noise else TEST_SEQUENCES
    features = torch.arange(number).remainder(setting.features).expand(setting.seeds, -1).contiguous()
    tokens = data.draw_tokens(setting, draws, features)
    forms = _forms(weights, frames, widths)
    if setting.noise:
        vectors = data.add_noise(setting, draws, tokens)
        parts = [contributions_of_vectors(form, vectors, setting.chosen) for form in forms]
    else:
        routed = route(weights.router @ frames, tokens, setting.chosen)
        parts = [contributions(tables(form)[0], form.signs, routed) for form in forms]
    return Readings(setting, torch.stack(parts), features)


def _forms(weights: Weights, frames: Tensor, widths: tuple[int, ...]) -> Iterator[Weights]:
    yield weights.in_patterns(frames)
    for bits in widths:
        yield Weights(rounded(weights.experts, bits), weights.router, weights.signs).in_patterns(frames)
