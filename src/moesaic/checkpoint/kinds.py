"""What kind of weight a tensor is, told from its name and shape: in a file, or in the model.

Names differ between architectures but follow the same few conventions; a test compares the answers with the modules of
the real architectures. Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KINDS = (
    "routed experts",
    "shared experts",
    "attention",
    "dense MLP",
    "embeddings",
    "head",
    "norms",
    "routers",
    "other",
)
PACKABLE = ("shared experts", "attention", "dense MLP")  # beside the routed experts, as `--other-bits` says
SMALLEST_LINEAR = 32  # linear layers with fewer inputs or outputs are gates of some kind, and cost nothing to keep

_BESIDE_THE_LAYERS = (("head", re.compile(r"(^|\.)(lm_head|embed_out|output_layer)(\.|$)")),)
_BY_NAME = (
    ("shared experts", re.compile(r"shared_(expert|mlp)")),
    ("norms", re.compile(r"(norm|(^|\.)ln_?\w*)\.\w+$", re.IGNORECASE)),
    ("attention", re.compile(r"attn|attention", re.IGNORECASE)),
    ("dense MLP", re.compile(r"(^|\.)(\w*mlp|feed_forward|ffn|moe)\.", re.IGNORECASE)),
)
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|shared)\.weight$")


@dataclass(frozen=True)
class Block:
    """One expert layer, as its tensors tell.

    Attributes:
        name: what the names of its tensors begin with, such as `model.layers.3.mlp`.
        experts: number of routed experts.
        expert_weights: weights of one of them, biases left out.
        router: the router's weight, None where no single one is found.
        router_tensors: its other tensors, such as a bias.
    """

    name: str
    experts: int
    expert_weights: int
    router: str | None
    router_tensors: tuple[str, ...]


@dataclass
class _Found:
    numbers: set[int]
    fused: int
    weights: int


def split_expert(name: str) -> tuple[str, int | None, str] | None:
    """`a.mlp.experts.3.w1.weight` -> `("a.mlp", 3, "w1.weight")`; None for what is not of a routed expert."""
    block, marker, rest = name.partition(".experts.")
    if not marker:
        return None
    number, _, part = rest.removeprefix("expert_").partition(".")
    return (block, int(number), part) if number.isdecimal() else (block, None, rest)


def find_blocks(shapes: Mapping[str, tuple[int, ...]]) -> list[Block]:
    """The expert layers among named shapes, in order of first appearance by number."""
    found: dict[str, _Found] = {}
    for name, shape in shapes.items():
        parts = split_expert(name)
        if parts is not None:
            block, number, _ = parts
        elif len(shape) == 3 and "_moe." in name:  # fused, without a module of their own
            block, number = name.rpartition("_moe.")[0] + "_moe", None
        else:
            continue
        held = found.setdefault(block, _Found(set(), 0, 0))
        if number is not None:
            held.numbers.add(number)
            held.weights += math.prod(shape) if len(shape) > 1 else 0
        else:
            held.fused = max(held.fused, shape[0])
            held.weights += math.prod(shape) if len(shape) > 2 else 0
    beside = _beside(shapes, found)
    blocks = []
    for name in sorted(found, key=_natural):
        experts = len(found[name].numbers) or found[name].fused
        wide = [each for each in beside[name] if experts in shapes[each]]
        routers = [each for each in wide if len(shapes[each]) == 2 and shapes[each][0] == experts]
        routers = [each for each in routers if each.endswith("weight")]
        router = routers[0] if len(routers) == 1 else None
        rest = tuple(each for each in wide if each != router)
        blocks.append(Block(name, experts, found[name].weights // experts, router, rest))
    return blocks


def _beside(shapes: Mapping[str, tuple[int, ...]], found: Iterable[str]) -> dict[str, list[str]]:
    """The small tensors that lie in each block beside its experts."""
    beside: dict[str, list[str]] = {name: [] for name in found}
    for name, shape in shapes.items():
        if ".experts." in name or len(shape) > 2 or "shared_" in name:
            continue
        block = name
        while block:
            block = block.rpartition(".")[0]
            if block in beside:
                beside[block].append(name)
    return beside


def kinds_of(shapes: Mapping[str, tuple[int, ...]], blocks: Iterable[Block]) -> dict[str, str]:
    """The kind of every tensor, one of `KINDS`."""
    by_name = {block.name: block for block in blocks}
    routing = {name for block in by_name.values() for name in (block.router, *block.router_tensors)}
    return {name: "routers" if name in routing else _kind(name, shape, by_name) for name, shape in shapes.items()}


def _kind(name: str, shape: tuple[int, ...], blocks: Mapping[str, Block]) -> str:
    if ".experts." in name or (len(shape) == 3 and name.rpartition("_moe.")[0] + "_moe" in blocks):
        return "routed experts"
    for kind, pattern in _BESIDE_THE_LAYERS:
        if pattern.search(name):
            return kind
    for kind, pattern in _BY_NAME:
        if pattern.search(name):
            return kind
    return "embeddings" if _EMBEDDING.search(name) else "other"


def is_packable(name: str, shape: tuple[int, ...], kind: str, stacks: Iterable[str]) -> bool:
    """Whether a tensor is the weight of a linear layer that `--other-bits` or `--head-bits` packs.

    Args:
        name, shape, kind: of the tensor.
        stacks: see `stacks_of`.
    """
    is_matrix = name.endswith(".weight") and len(shape) == 2 and min(shape) >= SMALLEST_LINEAR
    if kind == "head":  # one that shares its weight with the embedding has no tensor of its own
        return is_matrix
    return (
        kind in PACKABLE
        and is_matrix
        and "bias" not in name.rpartition(".")[0].rpartition(".")[2]
        and any(name.startswith(stack) for stack in stacks)
    )


def stacks_of(blocks: Iterable[Block]) -> set[str]:
    """The stacks of layers that hold expert layers: `model.layers.3.mlp` -> `model.layers.`"""
    found = set()
    for block in blocks:
        parts = block.name.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdigit()]
        found.add(".".join(parts[: numbers[0]]) + "." if numbers else "")
    return found


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
