"""What was measured, as one JSON object and as run records (`docs/records.md`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moesaic.evaluate.local_tasks import Figure
from moesaic.evaluate.quality import Mean, Quality
from moesaic.evaluate.routing import Agreement, RoutingComparison
from moesaic.evaluate.speed import Speed
from moesaic.records import RunRecord
from moesaic.runtime.skipping import Counted

_UNITS = {
    "perplexity": "",
    "perplexity_reference": "",
    "kl": "nats/token",
    "top1_agreement": "",
    "routing_same_set": "",
    "routing_overlap": "",
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
_OF_TOKENS = frozenset(list(_UNITS)[:7])  # the others are counted or run once
_UNMEASURED = dict.fromkeys(_UNITS)  # of a text alone nothing counts but what `texts` has
_PARTS = ("value", "reference", "difference")


def quality_figures(quality: Quality | None) -> dict[str, Any]:
    """Figures of a text with their intervals, all None where no text was read."""
    names = ("perplexity", "perplexity_reference", "kl", "top1_agreement")
    flat: dict[str, Any] = {}
    for name in names:
        flat |= _with_interval(name, None if quality is None else getattr(quality, name))
    return {**flat, "tokens": quality and quality.tokens, "windows": quality and quality.windows}


def share_figures(counted: Counted | None) -> dict[str, Any]:
    """Share of the expert activations that ran, overall and by layer, all None without a skipping policy."""
    return {
        "expert_share": None if counted is None else counted.share(),
        "expert_share_layers": None if counted is None else counted.shares(),
    }


def routing_figures(routing: RoutingComparison | None) -> dict[str, Any]:
    """Figures of the routers, overall and by layer, all None where no routers were compared."""
    overall = None if routing is None else routing.overall()
    return {
        **_with_interval("routing_same_set", None if overall is None else overall.same_set),
        **_with_interval("routing_overlap", None if overall is None else overall.overlap),
        "routing_layers": None if routing is None else {name: _layer(each) for name, each in routing.layers().items()},
    }


def _layer(agreement: Agreement) -> dict[str, Any]:
    same, overlap = _with_interval("same_set", agreement.same_set), _with_interval("overlap", agreement.overlap)
    return {**same, **overlap, "tokens": agreement.tokens}


def task_figures(found: dict[str, Figure]) -> dict[str, dict[str, Any]]:
    """Measure -> `value`, `reference`, `difference`, each with its `…_interval`."""
    return {
        measure: {key: value for part in _PARTS for key, value in _with_interval(part, getattr(figure, part)).items()}
        for measure, figure in found.items()
    }


def _with_interval(name: str, mean: Mean | None) -> dict[str, Any]:
    """`{name: value, name_interval: [low, high]}`"""
    if mean is None:
        return {name: None, f"{name}_interval": None}
    return {name: mean.value, f"{name}_interval": [mean.low, mean.high]}


def speed_figures(speed: Speed | None) -> dict[str, Any]:
    """Figures of speed and memory, all None where they were not measured."""
    if speed is None:
        return dict.fromkeys(Speed.__dataclass_fields__)
    return vars(speed)


def records(found: dict[str, Any]) -> list[RunRecord]:
    """The figures of `evaluate` as run records; `docs/records.md` lists them."""
    each = [{**found, **_UNMEASURED, **part} for part in found["texts"]]
    of_texts = [record for part in each for record in (*_plain_records(part), *_share_records(part))]
    return [
        *of_texts,
        *_plain_records(found),
        *_layer_records(found),
        *_share_records(found),
        *_task_records(found),
    ]


def _shared_conditions(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("model", "reference", "pruning")} | found["conditions"]


def _text_conditions(found: dict[str, Any]) -> dict[str, Any]:
    text = {key: found[key] for key in ("text", "window", "stride") if found[key] is not None}
    return {**_shared_conditions(found), **text}


def _plain_records(found: dict[str, Any]) -> Iterator[RunRecord]:
    for name, unit in _UNITS.items():
        if found.get(name) is not None:
            yield RunRecord(
                name=name,
                value=float(found[name]),
                unit=unit,
                n=found["tokens"] if name in _OF_TOKENS else 1,
                conditions=_text_conditions(found),
                interval=_pair(found.get(f"{name}_interval")),
            )


def _layer_records(found: dict[str, Any]) -> Iterator[RunRecord]:
    for layer, figures_ in (found["routing_layers"] or {}).items():
        for name in ("same_set", "overlap"):
            yield RunRecord(
                name=f"layer_routing_{name}",
                value=figures_[name],
                unit="",
                n=figures_["tokens"],
                conditions={**_text_conditions(found), "layer": layer},
                interval=_pair(figures_[f"{name}_interval"]),
            )


def _share_records(found: dict[str, Any]) -> Iterator[RunRecord]:
    for layer, share in (found["expert_share_layers"] or {}).items():
        conditions = {**_text_conditions(found), "layer": layer}
        yield RunRecord("layer_expert_share", share, "", found["tokens"] or 1, conditions)


def _task_records(found: dict[str, Any]) -> Iterator[RunRecord]:
    for family in ("tasks", "lm_eval"):
        for task in found[family]:
            told = {key: value for key, value in task.items() if key not in ("figures", "items")}
            shared = {**_shared_conditions(found), **told}
            for measure, parts in task["figures"].items():
                for part in _PARTS:
                    if parts[part] is not None:
                        yield RunRecord(
                            name=_task_record_name(family, measure, part),
                            value=parts[part],
                            unit="",
                            n=task["items"],
                            conditions=shared,
                            interval=_pair(parts[f"{part}_interval"]),
                        )


def _task_record_name(family: str, measure: str, part: str) -> str:
    first = "task" if family == "tasks" else "lm_eval"
    return f"{first}_{measure}" if part == "value" else f"{first}_{measure}_{part}"


def _pair(interval: list[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])
