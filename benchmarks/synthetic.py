"""Write a Mixtral checkpoint of random weights, tensor by tensor, at any size.

python -m benchmarks.synthetic FOLDER                      # Mixtral-8x7B's layers, 2 of them: 5.8 GB in bfloat16
python -m benchmarks.synthetic FOLDER --hidden 512 --intermediate 1024
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import MixtralConfig

from moesaic.checkpoint.writer import ShardFile, TensorSpec, shard_names, split_into_shards
from moesaic.records import write_json

SHARD_BYTES = 2_000_000_000


def tensor_groups(config: MixtralConfig) -> list[list[TensorSpec]]:
    """The tensors of a Mixtral checkpoint in its usual per-expert form, a list a layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head = hidden // config.num_attention_heads
    keys = config.num_key_value_heads * head

    def spec(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name, torch.bfloat16, shape)

    groups = [[spec("model.embed_tokens.weight", config.vocab_size, hidden)]]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        group = [spec(f"{at}.{norm}.weight", hidden) for norm in ("input_layernorm", "post_attention_layernorm")]
        for name, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys), ("o_proj", hidden)):
            group.append(spec(f"{at}.self_attn.{name}.weight", rows, hidden))
        group.append(spec(f"{at}.block_sparse_moe.gate.weight", config.num_local_experts, hidden))
        for expert in range(config.num_local_experts):
            for name, shape in (("w1", (inner, hidden)), ("w3", (inner, hidden)), ("w2", (hidden, inner))):
                group.append(spec(f"{at}.block_sparse_moe.experts.{expert}.{name}.weight", *shape))
        groups.append(group)
    return [*groups, [spec("model.norm.weight", hidden), spec("lm_head.weight", config.vocab_size, hidden)]]


def write_checkpoint(folder: Path, config: MixtralConfig, *, seed: int = 0) -> None:
    """Write the checkpoint; normal weights of standard deviation 0.02."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shards = split_into_shards(tensor_groups(config), SHARD_BYTES)
    weight_map = {}
    for name, specs in zip(shard_names(len(shards)), shards, strict=True):
        file = ShardFile(folder / name, specs)
        for spec in specs:
            norm = len(spec.shape) == 1
            data = torch.ones(spec.shape) if norm else torch.randn(spec.shape, generator=generator) * 0.02
            file.write(spec.name, data.to(spec.dtype))
            weight_map[spec.name] = name
        file.close()
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    config.architectures = ["MixtralForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=14336)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32000)
    a = parser.parse_args()
    config = MixtralConfig(
        hidden_size=a.hidden, intermediate_size=a.intermediate, num_hidden_layers=a.layers, vocab_size=a.vocabulary
    )
    write_checkpoint(a.folder, config)


if __name__ == "__main__":
    main()
