"""`moesaic generate`."""

from __future__ import annotations

import json
from pathlib import Path

from moesaic import CompressOptions, compress
from tests.processes import call_cli, run_cli
from tests.talking import talking_copy
from tests.tiny import save_tiny


def test_text_goes_to_standard_output(packed: Path) -> None:
    """The prompt and what follows are printed, and nothing else."""
    result = run_cli("generate", packed, "--prompt", "The cat", "--max-new-tokens", 5)
    assert result.code == 0
    assert result.out.startswith("The cat")
    assert result.err == ""


def test_json_is_one_object(packed: Path) -> None:
    """--json prints exactly one object; greedy generation repeats itself and agrees with the printed text."""
    command = ("generate", packed, "--prompt", "The cat", "--max-new-tokens", 5)
    result = call_cli(*command, "--json")
    assert result.out.count("\n") == 1
    found = json.loads(result.out)
    assert found["prompt"] == "The cat"
    assert found["text"].startswith("The cat")
    assert found["tokens"] == len("The cat") + 5
    assert call_cli(*command).out.rstrip("\n") == found["text"].rstrip("\n")


def test_sampling_follows_the_seed(packed: Path) -> None:
    """The same seed gives the same text, another seed another."""
    command = ("generate", packed, "--prompt", "The cat", "--temperature", 1, "--json")
    texts = [json.loads(call_cli(*command, "--seed", seed).out)["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_ordinary_checkpoint(mixtral: Path) -> None:
    """A checkpoint that is not packed can be tried too."""
    assert call_cli("generate", mixtral, "--prompt", "The cat", "--max-new-tokens", 2).out.startswith("The cat")


def test_an_encoder_decoder(tmp_path: Path) -> None:
    """Switch Transformers answer instead of going on."""
    source = talking_copy(save_tiny(tmp_path / "tiny", "switch_transformers"), tmp_path / "source")
    packed = compress(source, tmp_path / "packed", CompressOptions(bits=2.5))
    result = call_cli("generate", packed, "--prompt", "The cat", "--max-new-tokens", 4, "--json")
    assert result.code == 0
    assert json.loads(result.out)["tokens"] <= 5


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    """A prompt of tokens that the model does not have is refused in one line."""
    small = save_tiny(tmp_path / "small", "mixtral", vocab_size=20)
    folder = talking_copy(small, tmp_path / "folder")
    result = call_cli("generate", folder, "--prompt", "~")
    assert result.code == 1
    assert "which the model does not have" in result.err
    assert result.err.count("\n") == 1
