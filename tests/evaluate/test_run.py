"""All measures in one go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moesaic
from moesaic.errors import InvalidTask, InvalidText, MoesaicError, UnknownName, UsageError
from moesaic.evaluate.local_tasks import figures, run_task
from moesaic.evaluate.quality import measure_quality
from moesaic.evaluate.run import EvaluateOptions, evaluate, records
from moesaic.evaluate.tasks import read_set
from moesaic.records import RunRecord
from moesaic.runtime.hf import open_any
from moesaic.text import windows
from tests.talking import make_tokenizer, talking_copy
from tests.tiny import save_tiny

SETS = Path(__file__).with_name("sets")
NO_SPEED = EvaluateOptions(window=32, stride=8, max_tokens=100, speed=False)
SPEED_FIGURES = ("prefill_tokens_per_second", "decode_tokens_per_second", "load_seconds", "peak_memory_bytes")


def test_the_figures_are_those_of_the_measures(source: Path, packed: Path, text: Path) -> None:
    """Tokens come from the folder's tokenizer, windows from the options, figures from the two models."""
    found = evaluate(packed, text, reference=source, options=NO_SPEED)
    tokens = make_tokenizer()(text.read_text(), add_special_tokens=False)["input_ids"]
    wanted = measure_quality(
        moesaic.load(packed), windows(tokens, length=32, stride=8, limit=100), reference=open_any(source)
    )
    assert wanted.kl is not None
    assert found["perplexity"] == wanted.perplexity.value
    assert found["perplexity_interval"] == [wanted.perplexity.low, wanted.perplexity.high]
    assert found["kl"] == wanted.kl.value > 0
    assert found["tokens"] == wanted.tokens == 99
    assert (found["window"], found["stride"]) == (32, 8)
    assert json.loads(json.dumps(found)) == found
    assert all(found[name] is None for name in SPEED_FIGURES)


def test_an_ordinary_checkpoint_alone(source: Path, text: Path) -> None:
    """A checkpoint can be measured without another; comparisons are then empty, and the window is the model's."""
    found = evaluate(source, text, options=EvaluateOptions(speed=False))
    assert found["window"] == found["stride"] == 128
    assert found["stored_bpw"] == 16
    assert found["perplexity"] > 1
    assert found["kl"] is found["perplexity_reference"] is found["top1_agreement"] is None


def test_an_encoder_decoder(switch: Path, text: Path, tmp_path: Path) -> None:
    """Switch Transformers are measured too, packed against full precision."""
    packed = moesaic.compress(switch, tmp_path / "packed", moesaic.CompressOptions(bits=8, other_bits=8))
    found = evaluate(packed, text, reference=switch, options=EvaluateOptions(window=64, stride=32, speed=False))
    assert 0 <= found["kl"] < 0.05
    assert found["perplexity"] == pytest.approx(found["perplexity_reference"], rel=0.05)
    assert found["tokens"] == 500 - 32


def test_sixteen_bits_lose_nothing(source: Path, text: Path, tmp_path: Path) -> None:
    """A model packed with 16 bits everywhere has a divergence of zero."""
    packed = moesaic.compress(source, tmp_path / "packed", moesaic.CompressOptions(bits=16, other_bits=16))
    found = evaluate(packed, text, reference=source, options=NO_SPEED)
    assert found["kl"] == 0
    assert found["top1_agreement"] == 1
    assert found["perplexity"] == found["perplexity_reference"]


def test_records_carry_their_conditions(packed: Path, text: Path) -> None:
    """Every figure that was measured becomes a record with unit, number of tokens and conditions."""
    found = evaluate(packed, text, options=NO_SPEED)
    made = records(found)
    names = {record.name for record in made}
    assert {"perplexity", "code_bits", "stored_bpw", "expert_bytes", "total_bytes"} == names
    for record in made:
        assert isinstance(record, RunRecord)
        assert record.value == found[record.name]
        assert record.n == (99 if record.name == "perplexity" else 1)  # sizes are counted, not sampled
        assert (record.interval is None) == (record.name != "perplexity")
        assert record.conditions["window"] == 32
        assert record.conditions["text"] == text.name
        assert "machine" in record.conditions


def test_routing_is_compared(source: Path, packed: Path, text: Path) -> None:
    """Against a reference every layer has its agreement, and the whole is their mean."""
    found = evaluate(packed, text, reference=source, options=NO_SPEED)
    layers = found["routing_layers"]
    assert list(layers) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    for name in ("same_set", "overlap"):
        mean = sum(layer[name] for layer in layers.values()) / 2
        assert found[f"routing_{name}"] == pytest.approx(mean)
    assert layers["model.layers.0.mlp.experts"]["tokens"] == 99
    assert {"routing_same_set", "layer_routing_overlap"} < {record.name for record in records(found)}
    assert evaluate(packed, text, options=NO_SPEED)["routing_layers"] is None


def test_tasks_without_a_text(source: Path, packed: Path) -> None:
    """Tasks need no text; with a reference both models answer, and the speed still has a prompt."""
    options = EvaluateOptions(tasks=("animals", str(SETS / "pronouns.jsonl")), task_limit=3, new_tokens=3)
    with pytest.raises(UnknownName):
        evaluate(packed, None, options=options)
    options = EvaluateOptions(
        tasks=(str(SETS / "animals.jsonl"), str(SETS / "pronouns.jsonl")), task_limit=3, new_tokens=3
    )
    found = evaluate(packed, None, reference=source, options=options)
    assert found["perplexity"] is found["text"] is found["tokens"] is found["routing_same_set"] is None
    assert [task["items"] for task in found["tasks"]] == [3, 3]
    questions = read_set(SETS / "animals.jsonl", limit=3)
    wanted = figures(
        *(run_task(open_any(folder), make_tokenizer(), questions, longest=128) for folder in (packed, source))
    )
    assert found["tasks"][0]["figures"]["accuracy"]["value"] == wanted["accuracy"].value.value
    assert found["tasks"][0]["figures"]["accuracy"]["difference"] == wanted["accuracy"].difference.value
    assert found["decode_tokens_per_second"] > 0
    assert "task_changed_answers" in {record.name for record in records(found)}
    with pytest.raises(UsageError, match="nothing to measure"):
        evaluate(packed, None)


def test_a_set_is_read_before_the_models(tmp_path: Path, text: Path) -> None:
    """A line that is wrong costs no loading of models."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}")
    with pytest.raises(InvalidTask, match="line 1"):
        evaluate(tmp_path / "no such model", text, options=EvaluateOptions(tasks=(str(bad),)))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (EvaluateOptions(window=129), UsageError),
        (EvaluateOptions(window=16, stride=17), UsageError),
        (EvaluateOptions(max_tokens=1), InvalidText),
    ],
)
def test_options_that_cannot_be(options: EvaluateOptions, error: type[MoesaicError], packed: Path, text: Path) -> None:
    """Windows beyond the model, strides beyond the window and a single token are refused."""
    with pytest.raises(error):
        evaluate(packed, text, options=options)


def test_a_tokenizer_of_another_model(text: Path, tmp_path: Path) -> None:
    """A tokenizer whose tokens the model does not have is refused."""
    small = save_tiny(tmp_path / "small", "mixtral", vocab_size=20)
    folder = talking_copy(small, tmp_path / "folder")
    with pytest.raises(InvalidText, match="which the model does not have"):
        evaluate(folder, text, options=NO_SPEED)


def test_the_text_is_read_before_the_model(tmp_path: Path, packed: Path) -> None:
    """A text that is not there costs no loading of models."""
    with pytest.raises(InvalidText, match="nowhere"):
        evaluate(packed, tmp_path / "nowhere.txt", reference=tmp_path / "no such model")
