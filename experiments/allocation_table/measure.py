"""A plan with a quantizer: KL from full precision and loss, block by block of held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from experiments.mixture import Measured, Mixture, log_probabilities, token_kl, token_losses
from torch import Tensor

from moesaic import CompressOptions, compress, load
from moesaic.budgets import stored_bpw
from moesaic.checkpoint.reader import Checkpoint
from moesaic.options import CompressOptions as Options
from moesaic.packing.build import PackedBuild
from moesaic.quantize import needs_moment
from moesaic.records import STORED_WIDTH, BitPlan, write_json

BATCH = 8


class Yardstick:
    """A model in full precision on held-out text, and what rounding its experts costs it.

    Everything but the routed experts stays as it is. Rounding without data happens in memory, where every expert is
    rounded once a width; rounding with data is the whole road: calibrate layer by layer, pack, load, run.

    Attributes:
        folder: the checkpoint.
        blocks: `[n, length]` token ids.
        text: options of `CompressOptions` that name the calibration text.
        work: folder for packed models.
    """

    def __init__(self, folder: Path, blocks: Tensor, text: Mapping[str, Any], work: Path) -> None:
        self.folder, self.blocks, self.text, self.work = folder, blocks, text, work
        self._mixture: Mixture | None = None

    def measure(self, quantizer: str, plan: BitPlan) -> Measured:
        """Round the experts to the plan's widths and compare with full precision."""
        made = Options(bits=2.5, quantizer=quantizer).make_quantizer()
        if needs_moment(made):
            return self._packed(quantizer, plan)
        mixture = self._mixture
        if mixture is None or mixture.quantizer != made:
            self._mixture = mixture = Mixture(self.folder, self.blocks, made, batch=BATCH)
        return mixture.kl(plan)

    def _packed(self, quantizer: str, plan: BitPlan) -> Measured:
        exact = self._full_precision()
        write_json(self.work / "plan.json", plan.to_json())
        options = CompressOptions(
            plan=self.work / "plan.json", quantizer=quantizer, other_bits=STORED_WIDTH, **self.text
        )
        packed = compress(self.folder, self.work / "packed", options, overwrite=True)
        model = load(packed, dtype=torch.float32)
        divergence, losses = [], []
        for rows, logs_exact in zip(self.blocks.split(BATCH), exact.split(BATCH), strict=True):
            logs = log_probabilities(model, rows)
            divergence.append(token_kl(logs_exact, logs).mean(dim=1))
            losses.append(token_losses(logs, rows).mean(dim=1))
        return Measured(torch.cat(divergence), torch.cat(losses))

    def full_precision_loss(self) -> Tensor:
        """Loss of the model as it is, a mean a block. `[n]`"""
        return token_losses(self._full_precision(), self.blocks).mean(dim=1)

    def _full_precision(self) -> Tensor:
        if self._mixture is None:
            made = Options(bits=2.5).make_quantizer()
            self._mixture = Mixture(self.folder, self.blocks, made, batch=BATCH)
        return self._mixture.log_probabilities


def stored_bits(checkpoint: Checkpoint, plan: BitPlan, quantizer: str) -> float:
    """Stored bits a weight of the experts under a plan, from the sizes of the packed format."""
    made = Options(bits=2.5, quantizer=quantizer).make_quantizer()
    return stored_bpw(PackedBuild(checkpoint, plan, made, other_bits=STORED_WIDTH))
