"""Material of a report that a test made up: manifests, records and statistics of any size, in their file forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from moesaic.report.sources import Material, Measurement, Run

LAYERS = [f"model.layers.{layer}.mlp.experts" for layer in range(3)]


def manifest(widths: str = "1 2 3 4", layers: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A manifest whose layers all have these widths, with router norms and MaxVar."""
    names = LAYERS if layers is None else layers
    count = len(widths.split())
    random = np.random.default_rng(0)
    noted = {name: {layer: random.random(count).tolist() for layer in names} for name in ("router_norm", "max_var")}
    return {
        "format_version": 1,
        "versions": {"moesaic": "0"},
        "source": {"name": "made-up", "model_type": "mixtral", "content_sha256": "0" * 64},
        "options": {"bits": 2.5, "levels": [1, 2], "symmetric": True, "plan": None},
        "code_bits": 2.5,
        "stored_bpw": 2.6875,
        "expert_bytes": 336,
        "expert_weights": 1000,
        "total_bytes": 2_000_000,
        "plan": {"format": "moesaic-plan/1", "method": "by hand", "requested_bits": None}
        | {"layers": dict.fromkeys(names, widths)},
        "scores": None,
        "observed": noted,
        "files": {},
        **more,
    }


def record(name: str, value: float, *, model: str = "one", n: int = 100, **more: Any) -> dict[str, Any]:
    """A run record in its file form; `interval` and `unit` by name, all else are conditions."""
    own = {key: more.pop(key) for key in ("interval", "unit") if key in more}
    conditions = {"model": model, "text": "text.txt", "window": 64, "stride": 64, "machine": "a machine", **more}
    return {"name": name, "value": value, "unit": "", "n": n, "conditions": conditions, **own}


def measurement(
    name: str, value: float, low: float | None = None, high: float | None = None, **more: Any
) -> Measurement:
    """A measurement under the usual setting."""
    known = record(name, value, **more)
    return Measurement(name, value, known["unit"], known["n"], known["conditions"], low, high)


def run(label: str, widths: str = "1 2 3 4", *measured: Measurement, **more: Any) -> Run:
    """A run with a folder."""
    return Run(label, label, manifest(widths, **more), measured)


def three_runs() -> Material:
    """Two uniform runs and a mixed one, measured and compared layer by layer."""
    made = []
    for number, (label, widths, size) in enumerate(
        (("low", "2 2 2 2", 1), ("mixed", "1 2 3 4", 2), ("high", "4 4 4 4", 3))
    ):
        kl = 0.3 / (1 + number)
        measured = [
            measurement("perplexity", 30.0 - number, 29.0 - number, 32.0 - number),
            measurement("perplexity_reference", 25.0),
            measurement("kl", kl, 0.9 * kl, 1.1 * kl),
            measurement("top1_agreement", 0.8),
            measurement("decode_tokens_per_second", 10.0 + number, unit="tokens/s", n=1),
            measurement("peak_memory_bytes", 5e8, unit="bytes", n=1),
            *(
                measurement("layer_routing_same_set", 0.9 - 0.1 * place, layer=name)
                for place, name in enumerate(LAYERS)
            ),
        ]
        made.append(run(label, widths, *measured, total_bytes=size * 1_000_000))
    return Material(tuple(made))


def write_folder(folder: Path, made: dict[str, Any], records: list[dict[str, Any]] | None = None) -> Path:
    """A packed folder so far as a report reads it."""
    folder.mkdir(parents=True)
    (folder / "moesaic.json").write_text(json.dumps(made))
    if records is not None:
        (folder / "records.json").write_text(json.dumps({"format": "moesaic-records/1", "records": records}))
    return folder


def write_statistics(path: Path, counts: dict[str, list[int]], tokens: int = 1000, **more: Any) -> Path:
    """A statistics file with these counts; `more` is role -> layer -> array."""
    arrays = {f"{layer}/count": np.array(count, dtype=np.int64) for layer, count in counts.items()}
    arrays |= {f"{layer}/{role}": each for role, layers in more.items() for layer, each in layers.items()}
    head = {"format": "moesaic-stats/1", "bits": [2, 3], "quantizer": "", "fingerprint": {}}
    save_file(arrays, path, {"moesaic": json.dumps({**head, "tokens": dict.fromkeys(counts, tokens)})})
    return path
