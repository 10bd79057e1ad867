"""Calibration statistics on disk: one safetensors file, described in `docs/stats.md`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from moesaic.checkpoint.writer import write_tensors
from moesaic.errors import CorruptFile
from moesaic.records import ExpertStats, LayerStats

STATS_FORMAT = "moesaic-stats/1"


def save_stats(stats: ExpertStats, path: Path) -> None:
    """Write the file form, replacing the file only when it is complete.

    Raises:
        StorageFull: no room on the disk.
    """
    tensors, metadata = _file_form(stats)
    write_tensors(tensors, path, metadata)


def stats_bytes(stats: ExpertStats) -> int:
    """How large the file is going to be."""
    tensors, metadata = _file_form(stats)
    return len(save(tensors, metadata))


def _file_form(stats: ExpertStats) -> tuple[dict[str, Tensor], dict[str, str]]:
    head = {
        "format": STATS_FORMAT,
        "bits": list(stats.bits),
        "quantizer": stats.quantizer,
        "fingerprint": dict(stats.fingerprint),
        "tokens": {name: layer.tokens for name, layer in stats.layers.items()},
    }
    tensors = {
        f"{name}/{role}": tensor.contiguous()
        for name, layer in stats.layers.items()
        for role, tensor in layer.tensors().items()
    }
    return tensors, {"moesaic": json.dumps(head)}


def load_stats(path: Path) -> ExpertStats:
    """Read the file form.

    Raises:
        CorruptFile: not a statistics file, or one with parts missing.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {}).get("moesaic", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFile(f"{path}: not a readable statistics file ({error})") from None
    if head.get("format") != STATS_FORMAT:
        raise CorruptFile(f"{path}: its format is {head.get('format')!r}, not {STATS_FORMAT!r}")
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in head["tokens"]}
    for name, tensor in tensors.items():
        layer, _, role = name.rpartition("/")
        parts.setdefault(layer, {})[role] = tensor
    try:
        layers = {name: LayerStats(tokens=head["tokens"][name], **roles) for name, roles in parts.items()}
    except (TypeError, KeyError) as error:
        raise CorruptFile(f"{path}: its tensors are not those of statistics ({error})") from None
    for name, stats in layers.items():
        _check(path, name, stats, len(head["bits"]))
    return ExpertStats(layers, tuple(head["bits"]), str(head["quantizer"]), head["fingerprint"])


def _check(path: Path, name: str, stats: LayerStats, widths: int) -> None:
    experts = stats.experts
    for role, tensor in stats.tensors().items():
        shaped = tensor.shape[0] == experts if tensor.ndim else False
        if "error" in role or "fisher" in role:
            shaped = shaped and tensor.ndim > 1 and tensor.shape[1] == widths
        if not shaped or not bool(torch.isfinite(tensor).all()):
            raise CorruptFile(f"{path}: {name}, {role}: shape {tuple(tensor.shape)} or values that cannot be")
