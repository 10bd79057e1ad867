"""A skipping policy inside a packed folder: `pruning.json`, and the tensors that it names with their hash.

The manifest of the folder does not list them: a policy may come, go and change while the packed model stays the
same, byte for byte. The JSON file says which model and plan it is for. It is written last, in one rename, and names
its tensors by their hash, so that a folder holds the old policy or the new one and nothing between.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from moesaic.checkpoint.shards import read_header
from moesaic.errors import CorruptFile, InvalidPolicy, UnknownName
from moesaic.prune import POLICIES, Policy, Pruning
from moesaic.prune.decide import THRESHOLD
from moesaic.records import read_json, write_json
from moesaic.registry import look_up

PRUNING = "pruning.json"
FORMAT = "moesaic-pruning/1"
_KEYS = ("policy", "knobs", "top_k", "target", "reached", "made_for", "tensors", "details")


def fingerprint(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a policy is made for: the source model, its plan, and the packed bytes."""
    source = manifest.get("source")
    return {
        "model": str(source.get("content_sha256")) if isinstance(source, dict) else "",
        "plan": _digest(manifest.get("plan")),
        "files": _digest(manifest.get("files")),
    }


def write_pruning(folder: Path, pruning: Pruning, manifest: Mapping[str, Any]) -> None:
    """Save a policy in a packed folder, in place of the one that was there.

    Args:
        folder: packed.
        pruning: the policy.
        manifest: of the folder.
    """
    tensors = {
        f"{layer}.{key}": tensor.detach().float().cpu().contiguous()
        for layer, state in pruning.layers.items()
        for key, tensor in state.items()
    }
    data = save(tensors, metadata={"format": "pt"})
    digest = hashlib.sha256(data).hexdigest()
    name = f"pruning-{digest[:16]}.safetensors"
    draft = folder / f"{name}.draft"
    try:
        draft.write_bytes(data)
        draft.replace(folder / name)
        write_json(
            folder / PRUNING,
            {
                "format": FORMAT,
                "policy": pruning.name,
                "knobs": _knobs(pruning.policy),
                "top_k": pruning.top_k,
                "target": pruning.target,
                "reached": pruning.reached,
                "made_for": fingerprint(manifest),
                "tensors": {"file": name, "bytes": len(data), "sha256": digest},
                "details": dict(pruning.details),
            },
        )
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    _sweep(folder, name)


def remove_pruning(folder: Path) -> bool:
    """Take the policy out of a packed folder; whether there was one."""
    found = (folder / PRUNING).is_file()
    (folder / PRUNING).unlink(missing_ok=True)
    _sweep(folder, "")
    return found


def read_pruning(folder: Path, manifest: Mapping[str, Any]) -> Pruning | None:
    """The policy of a packed folder, None without one.

    Raises:
        CorruptFile: a damaged or incomplete one.
        InvalidPolicy: made for another model, or for another plan of this one; or of a policy that is not known.
    """
    path = folder / PRUNING
    if not path.is_file():
        return None
    data = read_json(path)
    if data.get("format") != FORMAT:
        raise CorruptFile(f'{path}: its "format" is {data.get("format")!r}, this moesaic reads {FORMAT!r}')
    absent = [key for key in _KEYS if key not in data]
    if absent:
        raise CorruptFile(f'{path}: no "{absent[0]}"; {_AGAIN}')
    _check_made_for(path, data["made_for"], fingerprint(manifest))
    policy = _policy(path, data["policy"], data["knobs"])
    numbers = [data[key] for key in ("top_k", "target", "reached")]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise CorruptFile(f"{path}: top_k, target or reached is not a number; {_AGAIN}")
    layers = _layers(path, data["tensors"])
    details = data["details"] if isinstance(data["details"], dict) else {}
    return Pruning(data["policy"], policy, int(numbers[0]), float(numbers[1]), float(numbers[2]), layers, details)


_AGAIN = "run `moesaic prune` again, or load with skipping turned off"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _knobs(policy: Any) -> dict[str, Any]:
    return dataclasses.asdict(policy)


def _sweep(folder: Path, keep: str) -> None:
    """Remove the tensors of earlier policies."""
    for path in folder.glob("pruning-*.safetensors"):
        if path.name != keep:
            path.unlink(missing_ok=True)


def _check_made_for(path: Path, found: Any, wanted: Mapping[str, str]) -> None:
    if not isinstance(found, dict):
        raise CorruptFile(f'{path}: "made_for" is malformed; {_AGAIN}')
    if found.get("model") != wanted["model"]:
        raise InvalidPolicy(f"{path}: the policy was made for another model; {_AGAIN}")
    if found.get("plan") != wanted["plan"]:
        raise InvalidPolicy(f"{path}: the policy was made for another bit plan of this model; {_AGAIN}")
    if found.get("files") != wanted["files"]:
        raise InvalidPolicy(f"{path}: the policy was made for other packed files of this model and plan; {_AGAIN}")


def _policy(path: Path, name: Any, knobs: Any) -> Policy:
    try:
        made: Policy = look_up(str(name), POLICIES, kind="skipping policy", group="policies")(**knobs)
    except UnknownName as error:
        raise InvalidPolicy(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise CorruptFile(f"{path}: the knobs of {name} are {knobs!r} ({error}); {_AGAIN}") from None
    return made


def _layers(path: Path, entry: Any) -> dict[str, dict[str, Tensor]]:
    """The tensors by layer, when the file is what the JSON file says."""
    name = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise CorruptFile(f'{path}: "tensors" does not name a file of the folder; {_AGAIN}')
    file = path.with_name(name)
    if not file.is_file():
        raise CorruptFile(f"{file}: missing; {path.name} names it; {_AGAIN}")
    data = file.read_bytes()
    if len(data) != entry.get("bytes") or hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise CorruptFile(f"{file}: its bytes are not those that {path.name} was written with; {_AGAIN}")
    read_header(file)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load(data).items():
        layer, _, part = key.rpartition(".")
        if bool(torch.isnan(tensor).any()):
            raise CorruptFile(f"{file}: {key} holds NaN; {_AGAIN}")
        layers.setdefault(layer, {})[part] = tensor
    lacking = [layer for layer, state in layers.items() if THRESHOLD not in state]
    if lacking or not layers:
        raise CorruptFile(f"{file}: no threshold for {lacking[0] if lacking else 'any layer'}; {_AGAIN}")
    return layers
