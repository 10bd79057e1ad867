"""Every measure of every expert, by name: what is known without text, with text, and the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.weights import CheckpointWeights, InitialRouters
from moesaic.pipeline import calibrate, measure, open_calibration
from moesaic.records import CostTable, ExpertStats
from moesaic.scores import FisherError, Kurtosis, MaxVar, QuantError
from moesaic.scores.router_norm import router_norms
from moesaic.text import bundled_calibration_text

from ..held_out import Blocks, read_blocks
from .served import observe, unigram_of
from .setting import Setting

CHANGE, FINAL, TRUTH = "norm change", "final norm", "truth"
PER_USE = "truth per use"
Values = dict[str, dict[str, list[float]]]  # measure -> layer -> one number an expert


@dataclass(frozen=True)
class Weights:
    """The model as the scoring rules see it, with the statistics of the pipeline's calibration."""

    checkpoint: Checkpoint
    view: CheckpointWeights

    @classmethod
    def open(cls, setting: Setting) -> Weights:
        """Open the checkpoint; the statistics are measured where the work folder does not have them yet."""
        checkpoint = Checkpoint.open(setting.model)
        initial = None if setting.initial is None else InitialRouters.open(setting.initial)
        return cls(checkpoint, CheckpointWeights(checkpoint, initial, _statistics(setting)))


def _statistics(setting: Setting) -> ExpertStats:
    path = setting.work / "stats.safetensors"
    options = setting.options()
    if not path.exists():
        calibrate(setting.model, path, options, rules=("quant_error", "fisher_error"))
    reading = type(options)(**{**options.__dict__, "rule": "fisher_error", "stats": path})
    checkpoint = Checkpoint.open(setting.model)
    stats = measure(open_calibration(checkpoint, reading, setting.work), reading)
    if stats is None:
        raise ValueError(f"{path}: no statistics")
    return stats


def without_text(weights: Weights) -> Values:
    """Router norms, MaxVar and kurtosis."""
    view = weights.view
    found: Values = {FINAL: {}}
    for layer in view.experts:
        final, initial = view.router(layer), view.initial_router(layer)
        found[FINAL][layer] = router_norms(final).tolist()
        if initial is not None:
            found.setdefault(CHANGE, {})[layer] = (router_norms(final) - router_norms(initial)).tolist()
            found.setdefault("initial norm", {})[layer] = router_norms(initial).tolist()
            found.setdefault("norm of difference", {})[layer] = router_norms(final - initial).tolist()
    for name, rule in (("MaxVar", MaxVar()), ("kurtosis", Kurtosis())):
        found[name] = {layer: list(values) for layer, values in rule(view).layers.items()}
    return found


def with_text(setting: Setting, weights: Weights) -> Values:
    """What text shows: use, rarity, strength, and the costs of 2 bits by calibration."""
    blocks = calibration_blocks(setting)
    vocabulary = weights.checkpoint.config.get_text_config().vocab_size
    tokens = None if setting.run is None else setting.run / "tokens.safetensors"
    found: Values = {}
    for layer, served in observe(setting.model, blocks, unigram_of(blocks, vocabulary, tokens)).items():
        for name, values in served.values(blocks.tokens).items():
            found.setdefault(name, {})[layer] = values
    error = QuantError()(weights.view)
    found["quantization error"] = _at_two_bits(error)
    found["PMQ cost"] = _at_two_bits(error.weighted(1.0, 1.5, 1.0))
    found["Fisher cost"] = _at_two_bits(FisherError()(weights.view))
    return found


def calibration_blocks(setting: Setting) -> Blocks:
    """The text on which experts are observed: the calibration files, or the bundled text without domains."""
    files = setting.calibration
    if not files:
        bundled = setting.work / "bundled.txt"
        bundled.write_text(bundled_calibration_text(), encoding="utf-8")
        files = (bundled,)
    sizes = setting.sizes
    return read_blocks(setting.model, list(files), tokens=sizes.calibration_tokens, length=sizes.length)


def per_use(truth: dict[str, list[float]], counts: dict[str, list[float]]) -> dict[str, list[float]]:
    """The truth over the share of routed tokens that the expert gets: what an average token of its own loses."""
    found = {}
    for layer, values in truth.items():
        count = torch.tensor(counts[layer], dtype=torch.float64)
        found[layer] = (torch.tensor(values, dtype=torch.float64) / (count / count.sum())).tolist()
    return found


def _at_two_bits(costs: CostTable) -> dict[str, list[float]]:
    place = costs.bits.index(2)
    return {layer: [row[place] for row in rows] for layer, rows in costs.layers.items()}
