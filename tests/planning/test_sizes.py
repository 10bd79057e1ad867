"""Sizes of packed folders, foretold from headers, against the folders that come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesaic import CompressOptions, compress
from moesaic.checkpoint.reader import Checkpoint
from moesaic.contents import folder_files
from moesaic.packing.build import PackedBuild
from moesaic.pipeline import make_plan
from moesaic.planning.sizes import by_kind
from tests.talking import talking_copy

DEMO = Path(__file__).parents[2] / "models" / "demo"


def foretold(source: Path, options: CompressOptions) -> tuple[PackedBuild, dict[str, int]]:
    """The packed model to be, and its files."""
    checkpoint = Checkpoint.open(source)
    scores, plan = make_plan(checkpoint, options)
    widths = {"other_bits": options.other_bits, "head_bits": options.head_width}
    build = PackedBuild(checkpoint, plan, options.make_quantizer(), **widths)
    return build, folder_files(build, scores, options)


def check(files: dict[str, int], found: dict[str, int], *, slack: int) -> None:
    """All sizes equal but the manifest's, whose numbers are known only afterwards: at most `slack` too long."""
    files, found = dict(files), dict(found)
    longest, manifest = files.pop("moesaic.json"), found.pop("moesaic.json")
    assert files == found
    assert manifest <= longest <= manifest + slack


def sizes_of(folder: Path) -> dict[str, int]:
    """Every file's size on the disk."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mixtral", {"bits": 2.5}),
        ("mixtral", {"bits": 2.3, "shard_bytes": 100_000, "symmetric": False, "group_size": 32}),
        ("gpt_oss", {"bits": 4}),
        ("deepseek_v3", {"bits": 2, "other_bits": 16}),
        ("switch_transformers", {"bits": 16, "other_bits": 4}),
    ],
)
def test_files_are_foretold_to_the_byte(
    family: str, options: dict[str, Any], tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Names and sizes of all files, headers included, are those that `compress` writes; the manifest is not longer."""
    made = CompressOptions(**options)
    _, files = foretold(tiny_checkpoint(family), made)
    check(files, sizes_of(compress(tiny_checkpoint(family), tmp_path / "out", made)), slack=2000)


@pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="models/demo has no config.json here")
def test_the_demo_is_foretold(tmp_path: Path) -> None:
    """A real model with tokenizer and licence files: all to the byte but the manifest, the whole within 1 %."""
    options = CompressOptions(bits=2.5, quantizer="rtn-minmax")
    _, files = foretold(DEMO, options)
    found = sizes_of(compress(DEMO, tmp_path / "out", options))
    check(files, found, slack=sum(found.values()) // 100)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss", "switch_transformers"])
def test_kinds_add_up(family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Bytes by kind sum to those of all tensors, and the routed experts' to what the manifest will say."""
    source = talking_copy(tiny_checkpoint(family), tmp_path / "source")
    build, _ = foretold(source, CompressOptions(bits=2.5))
    kinds = {each.kind: each for each in by_kind(build)}
    checkpoint = build.checkpoint
    assert sum(each.after for each in kinds.values()) == sum(s.size for _, specs in build.units() for s in specs)
    assert sum(each.before for each in kinds.values()) == sum(s.stop - s.start for s in checkpoint.stored.values())
    biases = sum(
        2 * checkpoint.shapes[name][0] * checkpoint.shapes[name][1]
        for layer in checkpoint.layers
        for name in layer.parameters()
        if name.endswith("_bias")
    )
    markers = len(build.packed_layers)
    assert kinds["routed experts"].after == build.expert_bytes() + biases + markers
    for kind in ("embeddings", "norms", "routers"):
        assert kinds[kind].after == kinds[kind].before
