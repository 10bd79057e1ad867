"""One case: plan, compress, and the distance from full precision, block by block of held-out text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from moesaic import CompressOptions, compress, load
from moesaic.checkpoint.reader import Checkpoint
from moesaic.pipeline import measure, open_calibration, score
from moesaic.records import read_json, write_json
from moesaic.runtime.hf import open_model, open_tokenizer

from .cases import Case

BATCH = 16


@dataclass
class Yardstick:
    """A full-precision model with what it says of the held-out text.

    Attributes:
        folder: the checkpoint.
        blocks: `[n, length]` token ids.
        log_probabilities: `[n, length - 1, vocabulary]` float16 of log p, and the exact loss apart: half a gigabyte
            for 20,000 tokens would be too much in float32 on a small machine.
        losses: `[n]` mean negative log likelihood of each block.
    """

    folder: Path
    blocks: Tensor
    log_probabilities: Tensor
    losses: Tensor

    @classmethod
    def open(cls, folder: Path, text: Path, *, tokens: int, length: int) -> Yardstick:
        """Run the full-precision model over blocks spread evenly over a text."""
        ids = open_tokenizer(folder)(text.read_text(encoding="utf-8"), verbose=False)["input_ids"]
        whole = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
        count = min(len(whole), max(2, tokens // length))
        blocks = whole[torch.arange(count) * len(whole) // count]
        model = open_model(folder, dtype=torch.float32)
        kept, losses = [], []
        for rows in blocks.split(BATCH):
            logs = _log_probabilities(model, rows)
            kept.append(logs.half())
            losses.append(_losses(logs, rows))
        return cls(folder, blocks, torch.cat(kept), torch.cat(losses))

    def compare(self, model: Any) -> tuple[Tensor, Tensor]:
        """KL from full precision and loss, a mean a block. `[n]` each"""
        divergence, losses = [], []
        for at, rows in enumerate(self.blocks.split(BATCH)):
            logs = _log_probabilities(model, rows)
            exact = self.log_probabilities[at * BATCH : at * BATCH + len(rows)].float()
            divergence.append((exact.exp() * (exact - logs)).sum(dim=-1).mean(dim=1))
            losses.append(_losses(logs, rows))
        return torch.cat(divergence), torch.cat(losses)


@torch.inference_mode()
def _log_probabilities(model: Any, rows: Tensor) -> Tensor:
    return log_softmax(model(input_ids=rows, use_cache=False).logits[:, :-1].float(), dim=-1)


def _losses(logs: Tensor, rows: Tensor) -> Tensor:
    return -logs.gather(2, rows[:, 1:, None])[..., 0].mean(dim=1)


def run_case(yardstick: Yardstick, case: Case, *, stats: Path, text: dict[str, Any], work: Path) -> dict[str, Any]:
    """Compress by the case's rule and compare."""
    options = case.options(stats, text)
    if case.rule.form is not None:
        options = _planned(yardstick.folder, options, case, work)
    out = compress(yardstick.folder, work / "packed", options, overwrite=True)
    manifest = read_json(out / "moesaic.json")
    divergence, losses = yardstick.compare(load(out, dtype=torch.float32))
    return {
        "key": case.key,
        "rule": case.rule.name,
        "quantizer": case.quantizer,
        "measure": case.measure,
        "budget": case.budget,
        "code_bits": manifest["code_bits"],
        "stored_bpw": manifest["stored_bpw"],
        "expert_bytes": manifest["expert_bytes"],
        "kl": interval(divergence),
        "loss": interval(losses),
        "perplexity": math.exp(float(losses.mean())),
        "kl_blocks": [round(value, 6) for value in divergence.tolist()],
    }


def _planned(folder: Path, options: CompressOptions, case: Case, work: Path) -> CompressOptions:
    """The plan of an allocator with a knob that the options do not have, as a file."""
    checkpoint = Checkpoint.open(folder)
    calibration = open_calibration(checkpoint, options, work)
    costs = score(checkpoint, options, measure(calibration, options))
    allocator = options.make_allocator(form=case.rule.form)
    budget = options.budget
    if options.bits is None:  # symmetric groups of one size: all widths have the same scales
        overhead = 8 / options.group_size + 16 / max(layer.hidden for layer in checkpoint.layers)
        budget = type(budget)(case.budget - overhead)
    plan = allocator([layer.shape for layer in checkpoint.layers], budget, costs)
    write_json(work / "plan.json", plan.to_json())
    kept = {"quantizer": options.quantizer, "stats": None, "calibration": options.calibration}
    sizes = {"sequences": options.sequences, "sequence_length": options.sequence_length}
    return CompressOptions(plan=work / "plan.json", **kept, **sizes)


def interval(values: Tensor) -> dict[str, float]:
    """Mean over blocks with a 95 % interval from their spread."""
    values = values.double()
    mean, half = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}
