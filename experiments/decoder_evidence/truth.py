"""The truth about an expert: what the model loses on held-out text when that expert alone goes to 2 bits."""

from __future__ import annotations

import time

import numpy as np
from scipy.stats import spearmanr

from moesaic.checkpoint.reader import Checkpoint

from ..intervals import Interval, over_runs
from ..journal import Journal
from ..mixture import Mixture
from .setting import QUANTIZER, Setting
from .tail import Tail

BITS = 2


def measure_truth(setting: Setting) -> dict[str, list[list[float]]]:
    """Layer -> expert -> KL of every held-out block, nats a token; what is in the work folder is not measured again."""
    blocks, _ = setting.blocks()
    journal = Journal(setting.work / "truth.jsonl", {**setting.settings(), "blocks": len(blocks), "bits": BITS})
    mixture = tail = None
    found: dict[str, list[list[float]]] = {}
    for layer in Checkpoint.open(setting.model).layers:
        for expert in range(layer.experts):
            key = f"{layer.name} {expert}"
            if key not in journal.found:
                if mixture is None or tail is None:
                    mixture = Mixture(setting.model, blocks.ids, QUANTIZER)
                    tail = Tail(mixture)
                start = time.monotonic()
                with mixture.one_expert(layer, expert, BITS):
                    values = tail.kl(layer.name)
                journal.add(key, [float(f"{value:.5g}") for value in values.tolist()])
                print(f"truth {key}: {float(values.mean()):.5f}, {time.monotonic() - start:.1f} s", flush=True)
            found.setdefault(layer.name, []).append(journal.found[key])
    return found


def means(truth: dict[str, list[list[float]]]) -> dict[str, list[Interval]]:
    """Mean over blocks with its 95 % interval, for every expert."""
    return {layer: [over_runs(values) for values in experts] for layer, experts in truth.items()}


def reliability(truth: dict[str, list[list[float]]], sources: tuple[str, ...]) -> float:
    """How far noise of the text lets an order be known: Spearman of two halves of the blocks, a mean over layers.

    Each half has every second block of each source, so that the halves are of the same domains. 1 where the two order
    the experts alike; the whole is more reliable than its halves.
    """
    seen: dict[str, int] = {}
    second = []
    for source in sources:
        seen[source] = seen.get(source, 0) + 1
        second.append(seen[source] % 2 == 0)
    chosen, each = np.asarray(second), []
    for experts in truth.values():
        values = np.asarray(experts)
        halves = values[:, ~chosen].mean(axis=1), values[:, chosen].mean(axis=1)
        each.append(float(spearmanr(*halves).statistic))
    return float(np.mean(each))
