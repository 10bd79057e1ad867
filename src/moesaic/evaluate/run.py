"""All measures of one model in one go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import InvalidText, UsageError
from moesaic.evaluate.conditions import conditions
from moesaic.evaluate.quality import Mean, Quality, measure_quality
from moesaic.evaluate.sizes import measure_sizes
from moesaic.evaluate.speed import Speed, measure_speed
from moesaic.progress import SILENT, Progress
from moesaic.records import RunRecord
from moesaic.runtime.hf import open_any, open_tokenizer
from moesaic.runtime.skipping import skipping_of
from moesaic.text import read_text, windows

LARGEST_WINDOW = 2048  # tokens, the convention of the papers
PROMPT_TOKENS = 64

_UNITS = {
    "perplexity": "",
    "perplexity_reference": "",
    "kl": "nats/token",
    "top1_agreement": "",
    "expert_share": "",
    "code_bits": "bits/weight",
    "stored_bpw": "bits/weight",
    "expert_bytes": "bytes",
    "total_bytes": "bytes",
    "decode_tokens_per_second": "tokens/s",
    "prefill_tokens_per_second": "tokens/s",
    "load_seconds": "s",
    "resident_loaded_bytes": "bytes",
    "peak_memory_bytes": "bytes",
}


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Attributes:
        window: tokens of a window; None for 2048, or what the model can.
        stride: tokens between windows; None for the window.
        max_tokens: use only the first tokens of the text.
        speed: measure speed and memory too.
        new_tokens: tokens to generate for the speed.
        threads: torch threads of the speed measurement.
        pruning: let the folder's skipping policy, if any, decide which experts run.
        trust_remote_code: as for `load`.
    """

    window: int | None = None
    stride: int | None = None
    max_tokens: int | None = None
    speed: bool = True
    new_tokens: int = 32
    threads: int | None = None
    pruning: bool = True
    trust_remote_code: bool = False


def evaluate(
    folder: Path,
    text: Path,
    *,
    reference: Path | None = None,
    options: EvaluateOptions | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a model folder, packed or not.

    Args:
        folder: the model.
        text: held-out text.
        reference: the full-precision model to compare with; both are in memory at the same time.
        options: how.
        progress: told of every scored token.

    Returns:
        A flat JSON object; figures that were not measured are None. `records` turns it into run records.

    Raises:
        MoesaicError: see `moesaic.errors`.
    """
    options = options or EvaluateOptions()
    sizes = measure_sizes(folder, trust_remote_code=options.trust_remote_code)
    content = read_text(text)
    tokenizer = open_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    tokens = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    model = open_any(folder, trust_remote_code=options.trust_remote_code, pruning=options.pruning)
    window, stride = _window(options, model.config)
    cut = windows(tokens, length=window, stride=stride, limit=options.max_tokens)
    if max(tokens) >= model.get_input_embeddings().num_embeddings:
        raise InvalidText(f"{folder}: its tokenizer makes token {max(tokens)}, which the model does not have")
    other = None if reference is None else open_any(reference, trust_remote_code=options.trust_remote_code)
    skipping = skipping_of(model)
    if skipping is not None:
        skipping.count()
    quality = measure_quality(model, cut, reference=other, progress=progress)
    del model, other
    speed = None
    if options.speed:
        speed = measure_speed(
            folder,
            tokens[: min(PROMPT_TOKENS, window // 2)],
            new_tokens=options.new_tokens,
            threads=options.threads,
            pruning=options.pruning,
            trust_remote_code=options.trust_remote_code,
        )
    return {
        "model": folder.name,
        **_quality(quality),
        "pruning": None if skipping is None else skipping.name,
        "expert_share": None if skipping is None else skipping.share(),
        "expert_share_layers": None if skipping is None else skipping.shares(),
        **vars(sizes),
        **_speed(speed),
        "text": text.name,
        "window": window,
        "stride": stride,
        "conditions": conditions(),
    }


def records(found: dict[str, Any]) -> list[RunRecord]:
    """The figures of `evaluate` as run records."""
    shared = {key: found[key] for key in ("model", "text", "window", "stride", "pruning")} | found["conditions"]
    layers = found["expert_share_layers"] or {}
    return [
        RunRecord(name=name, value=float(found[name]), unit=unit, n=found["tokens"], conditions=shared)
        for name, unit in _UNITS.items()
        if found.get(name) is not None
    ] + [
        RunRecord("expert_share_of_layer", share, "", found["tokens"], {**shared, "layer": layer})
        for layer, share in layers.items()
    ]


def _window(options: EvaluateOptions, config: Any) -> tuple[int, int]:
    possible = getattr(config, "max_position_embeddings", None) or LARGEST_WINDOW
    window = options.window or min(LARGEST_WINDOW, possible)
    if window > possible:
        raise UsageError(f"--window {window}: the model reads at most {possible} tokens")
    stride = options.stride or window
    if stride > window:
        raise UsageError(f"--stride {stride} is larger than the window of {window} tokens: some would not be scored")
    return window, stride


def _quality(quality: Quality) -> dict[str, Any]:
    measures = {
        "perplexity": quality.perplexity,
        "perplexity_reference": quality.perplexity_reference,
        "kl": quality.kl,
        "top1_agreement": quality.top1_agreement,
    }
    flat: dict[str, Any] = {}
    for name, mean in measures.items():
        flat[name] = None if mean is None else mean.value
        flat[f"{name}_interval"] = _interval(mean)
    return {**flat, "tokens": quality.tokens, "windows": quality.windows}


def _interval(mean: Mean | None) -> list[float] | None:
    return None if mean is None else [mean.low, mean.high]


def _speed(speed: Speed | None) -> dict[str, Any]:
    if speed is None:
        return dict.fromkeys(Speed.__dataclass_fields__)
    return vars(speed)
