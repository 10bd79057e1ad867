"""Measured figures as one object and as records."""

from __future__ import annotations

import json
from typing import Any

from moesaic.evaluate.flat import quality_figures, records, routing_figures, speed_figures, task_figures
from moesaic.evaluate.local_tasks import Figure
from moesaic.evaluate.quality import Mean, Quality


def found(**changes: Any) -> dict[str, Any]:
    """What `evaluate` returns, with made-up figures."""
    half = Mean(0.5, 0.4, 0.6)
    quality = Quality(100, 4, Mean(9.0, 8.0, 10.0), Mean(8.0, 7.0, 9.0), Mean(0.1, 0.0, 0.2), half)
    task = {"task": "copa", "file": "copa.valid.jsonl", "kind": "choice", "items": 7, "cut": 0}
    harness = {"task": "arc_easy", "version": "1.0", "items": 9}
    layer = {"same_set": 0.9, "same_set_interval": [0.8, 1.0], "overlap": 0.95, "overlap_interval": [0.9, 1.0]}
    routing = {"routing_same_set": 0.9, "routing_same_set_interval": [0.8, 1.0], "routing_overlap": 0.95}
    routing |= {"routing_overlap_interval": [0.9, 1.0], "routing_layers": {"a.experts": {**layer, "tokens": 100}}}
    figure = Figure(half, Mean(0.6, 0.5, 0.7), Mean(-0.1, -0.2, 0.0))
    return {
        "model": "m",
        "reference": "r",
        "pruning": "otp",
        "texts": [],
        "expert_share": 0.8,
        "expert_share_layers": {"a.experts": 0.7},
        **quality_figures(quality),
        **routing,
        "tasks": [{**task, "figures": task_figures({"accuracy": figure})}],
        "lm_eval": [{**harness, "figures": task_figures({"acc": Figure(half)})}],
        "code_bits": 2.5,
        **speed_figures(None),
        "text": "t.txt",
        "window": 32,
        "stride": 16,
        "conditions": {"machine": "x"},
        **changes,
    }


def test_records_by_name() -> None:
    """Each figure has a record with its number of samples and interval; parts of tasks are records of their own."""
    made = {record.name: record for record in records(found())}
    assert set(made) == {
        "perplexity",
        "perplexity_reference",
        "kl",
        "top1_agreement",
        "routing_same_set",
        "routing_overlap",
        "layer_routing_same_set",
        "layer_routing_overlap",
        "expert_share",
        "layer_expert_share",
        "code_bits",
        "task_accuracy",
        "task_accuracy_reference",
        "task_accuracy_difference",
        "lm_eval_acc",
    }
    assert made["perplexity"].interval == (8.0, 10.0)
    assert (made["perplexity"].n, made["code_bits"].n, made["task_accuracy"].n, made["lm_eval_acc"].n) == (100, 1, 7, 9)
    assert made["code_bits"].interval is None
    assert made["task_accuracy_difference"].value == -0.1
    assert made["task_accuracy_difference"].interval == (-0.2, 0.0)
    assert made["layer_routing_overlap"].conditions["layer"] == "a.experts"
    assert made["task_accuracy"].conditions["task"] == "copa"
    assert "text" not in made["task_accuracy"].conditions
    assert made["kl"].conditions["text"] == "t.txt"
    assert all(record.conditions["reference"] == "r" for record in made.values())
    assert all(json.loads(json.dumps(record.to_json())) for record in made.values())


def test_nothing_measured_is_none() -> None:
    """Where no text was read and no speed measured, every key is there and None."""
    for empty in (quality_figures(None), routing_figures(None), speed_figures(None)):
        assert empty
        assert all(value is None for value in empty.values())
    nothing = {"text": None, "window": None, "stride": None, "expert_share": None, "expert_share_layers": None}
    made = records(found(**quality_figures(None), **routing_figures(None), **nothing))
    assert {record.name.split("_")[0] for record in made} == {"code", "task", "lm"}
