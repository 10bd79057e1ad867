"""What a checkpoint folder holds, from `config.json`, the index and the headers: no weight is read, torch not imported.

The exact road, which builds the architecture and checks every shape, is `Checkpoint.open`; this one answers at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic.checkpoint.headers import ITEM_BYTES, Entry, read_all_entries
from moesaic.checkpoint.kinds import KINDS, Block, find_blocks, is_packable, kinds_of, stacks_of
from moesaic.errors import NotACheckpoint
from moesaic.json_files import read_json

_TOP_K = ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts", "moe_top_k")
_SCORING = ("scoring_func", "moe_router_activation_func", "router_activation", "score_function")
_ROUTING = {
    "norm_topk_prob": "chosen weights normalised",
    "topk_method": "choice",
    "n_group": "groups of experts",
    "topk_group": "groups that may be chosen",
    "routed_scaling_factor": "weights scaled by",
}


@dataclass(frozen=True)
class KindSize:
    """The tensors of one kind.

    Attributes:
        kind: one of `kinds.KINDS`.
        tensors: how many.
        weights: numbers in them.
        size: bytes.
        packable: bytes of those that moesaic packs.
        dtypes: names of their dtypes, the most frequent first.
    """

    kind: str
    tensors: int
    weights: int
    size: int
    packable: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """What `moesaic inspect` shows of a checkpoint.

    Attributes:
        folder: where it lies.
        config: `config.json`, as it is written.
        files: its safetensors files.
        tensors: how many they hold.
        blocks: the expert layers.
        kinds: sizes by kind, in the order of `kinds.KINDS`, those that occur.
    """

    folder: Path
    config: Mapping[str, Any]
    files: int
    tensors: int
    blocks: tuple[Block, ...]
    kinds: tuple[KindSize, ...]

    @classmethod
    def of(cls, folder: Path) -> Overview:
        """Look at a folder.

        Raises:
            NotACheckpoint, CorruptFile: as `headers.read_all_entries`; no `config.json`.
        """
        if not (folder / "config.json").is_file():
            raise NotACheckpoint(f"{folder}: no config.json; give a Hugging Face model folder or a hub id")
        files = read_all_entries(folder)
        entries = {name: entry for held in files.values() for name, entry in held.items()}
        shapes = {name: entry.shape for name, entry in entries.items()}
        blocks = find_blocks(shapes)
        config = read_json(folder / "config.json")
        return cls(folder, config, len(files), len(entries), tuple(blocks), _sizes(entries, shapes, blocks))

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(each.size for each in self.kinds)

    @property
    def weights(self) -> int:
        """Numbers in all tensors."""
        return sum(each.weights for each in self.kinds)

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the configuration that is about the language model."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def top_k(self) -> int | None:
        """Experts that a token goes to, None where the configuration does not say."""
        return next((self.text_config[key] for key in _TOP_K if key in self.text_config), None)

    @property
    def layers(self) -> int | None:
        """Layers with and without experts, None where the configuration does not say."""
        keys = ("num_hidden_layers", "num_layers", "n_layers")
        return next((self.text_config[key] for key in keys if key in self.text_config), None)

    @property
    def shared_experts(self) -> bool:
        """Whether there are experts that every token goes to."""
        return any(each.kind == "shared experts" for each in self.kinds)

    @property
    def active_weights(self) -> int | None:
        """Weights that one token meets, embeddings and head included; None where the configuration does not say."""
        if self.top_k is None:
            return None
        routed = sum(block.experts * block.expert_weights for block in self.blocks)
        return self.weights - routed + sum(min(self.top_k, b.experts) * b.expert_weights for b in self.blocks)

    def router_form(self) -> list[str]:
        """What headers and configuration tell of the router, in words."""
        if not self.blocks:
            return []
        found = ["linear" if self.blocks[0].router else "weight not found by its name"]
        found += sorted({name.rpartition(".")[2] for name in self.blocks[0].router_tensors})
        scoring = next((self.text_config[key] for key in _SCORING if key in self.text_config), None)
        found += [f"scores by {scoring}"] if scoring else []
        told = {key: self.text_config[key] for key in _ROUTING if self.text_config.get(key) is not None}
        return found + [f"{_ROUTING[key]}: {_word(value)}" for key, value in told.items()]

    def refusal(self) -> str | None:
        """Why `compress` would not take it, so far as headers and configuration tell; None where nothing is known."""
        if self.config.get("quantization_config"):
            return "the weights are already quantized; moesaic takes bfloat16, float16 or float32"
        if not self.blocks:
            return "no routed experts found by the names of its tensors; --check asks the architecture itself"
        return None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "folder": str(self.folder),
            "model_type": self.config.get("model_type"),
            "files": self.files,
            "tensors": self.tensors,
            "total_bytes": self.total_bytes,
            "weights": self.weights,
            "active_weights": self.active_weights,
            "layers": self.layers,
            "top_k": self.top_k,
            "shared_experts": self.shared_experts,
            "router": self.router_form(),
            "expert_layers": [asdict(block) for block in self.blocks],
            "kinds": [asdict(each) for each in self.kinds],
            "refusal": self.refusal(),
        }


def _sizes(
    entries: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]], blocks: list[Block]
) -> tuple[KindSize, ...]:
    kinds = kinds_of(shapes, blocks)
    stacks = stacks_of(blocks)
    held: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        held.setdefault(kind, []).append(name)
    return tuple(
        KindSize(
            kind=kind,
            tensors=len(held[kind]),
            weights=sum(entries[name].size // ITEM_BYTES[entries[name].dtype] for name in held[kind]),
            size=sum(entries[name].size for name in held[kind]),
            packable=sum(entries[n].size for n in held[kind] if _packed(n, shapes[n], kind, stacks)),
            dtypes=tuple(dtype for dtype, _ in Counter(entries[name].dtype for name in held[kind]).most_common()),
        )
        for kind in KINDS
        if kind in held
    )


def _packed(name: str, shape: tuple[int, ...], kind: str, stacks: set[str]) -> bool:
    if kind == "routed experts":
        return len(shape) > 1 and not name.endswith("bias")
    return is_packable(name, shape, kind, stacks)


def _word(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
