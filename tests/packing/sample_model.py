"""The tiny model whose packed folder is stored under `samples/`, and the plan it is packed with."""

from __future__ import annotations

from pathlib import Path

from moesaic.records import BitPlan, LayerBits
from tests.tiny import save_tiny

SAMPLE = Path(__file__).parent / "samples" / "v1"
LAYER = "model.layers.0.mlp.experts"
HIDDEN, INTERMEDIATE, EXPERTS = 64, 96, 4
PLAN = BitPlan("by hand", None, {LAYER: LayerBits((1, 2, 3, 4), (8, 16, 2, 1))})
LINEARS = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}


def save_sample_source(folder: Path) -> Path:
    """The checkpoint: a random mixtral of one layer; 96 is no multiple of 64, so that a group is padded."""
    return save_tiny(folder, "mixtral", num_hidden_layers=1, num_local_experts=EXPERTS, vocab_size=8)
