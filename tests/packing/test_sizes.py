"""The size of a folder is known before it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic import Checkpoint, CompressOptions, compress
from moesaic.contents import folder_files
from moesaic.packing.build import PackedBuild
from moesaic.packing.sizes import text_bytes, with_own_size
from moesaic.pipeline import make_plan
from moesaic.records import json_text


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "switch_transformers", "deepseek_v2"])
@pytest.mark.parametrize("bits", [1.5, 16])
@pytest.mark.parametrize("shard_bytes", [30_000, 5_000_000_000])
def test_to_the_byte(
    family: str, bits: float, shard_bytes: int, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """What is foretold from headers is what lies on the disk afterwards, but for the manifest, which is not longer."""
    options = CompressOptions(bits=bits, shard_bytes=shard_bytes)
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    scores, plan = make_plan(checkpoint, options)
    build = PackedBuild(checkpoint, plan, options.make_quantizer(), other_bits=4, head_bits=8)
    foretold = folder_files(build, scores, options)
    out = compress(tiny_checkpoint(family), tmp_path / "out", options)
    found = {path.name: path.stat().st_size for path in out.iterdir()}
    longest, manifest = foretold.pop("moesaic.json"), found.pop("moesaic.json")
    assert foretold == found
    assert manifest <= longest <= manifest + 3 * 40 * 8 * len(checkpoint.layers) + 200


@pytest.mark.parametrize("others", [0, 1, *range(820, 940), 9_800, 10**6 - 100])
def test_a_manifest_that_holds_its_own_size(others: int) -> None:
    """The size counts its own digits, also where one more digit makes it longer."""
    found = with_own_size({"total_bytes": others, "plan": {"reached": {"bits": 2}}})
    assert found["plan"]["reached"]["size"] == others + len(json_text(found))
    assert text_bytes({"a": "é"}) == len('{\n  "a": "é"\n}\n'.encode())
