"""Tasks of lm-eval (EleutherAI's language model evaluation harness) on a model that moesaic has opened.

lm-eval is an extra and is imported only here, when it is asked for. It runs through its own wrapper for models of
transformers, so that prompts, metrics and few-shot examples are those that others publish numbers with.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from moesaic.errors import InvalidTask, UnknownName, UsageError
from moesaic.evaluate.intervals import paired_mean_difference, paired_share_difference, share
from moesaic.evaluate.local_tasks import Figure
from moesaic.evaluate.quality import Mean
from moesaic.registry import nearest

_BATCH_LOGITS = 1 << 27  # lm-eval keeps the logits of a whole batch: 512 MB in float32
_LARGEST_BATCH = 16


@dataclass(frozen=True)
class HarnessTask:
    """What lm-eval found for one task or group of tasks.

    Attributes:
        task: its name.
        version: of the task's definition.
        items: number of documents.
        metrics: `metric` or `metric,filter` -> value; with an interval where it is a mean over the documents.
        samples: the same names -> value of each document, where a document has one.
    """

    task: str
    version: str
    items: int
    metrics: dict[str, Mean]
    samples: dict[str, list[float]]


def require_lm_eval() -> None:
    """Make sure that lm-eval is there.

    Raises:
        UsageError: it is not; says how to install it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError("--lm-eval needs lm-eval, which is not installed; install it: pip install 'moesaic[lm-eval]'")


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: Any,
    tasks: tuple[str, ...],
    *,
    longest: int,
    include: Path | None = None,
    limit: int | None = None,
    quiet: bool = True,
) -> list[HarnessTask]:
    """Run tasks with lm-eval.

    Args:
        model: packed or not, as `load` and transformers give it.
        tokenizer: the model's.
        tasks: names that lm-eval knows, or that the YAML files in `include` define.
        longest: tokens that the model can read at once.
        include: folder of task definitions of one's own.
        limit: only the first documents of each task.
        quiet: keep lm-eval's bars and notices to oneself.

    Raises:
        UsageError: lm-eval is not installed.
        UnknownName: no task of that name.
        InvalidTask: lm-eval could not run it, for example since its data cannot be reached.
    """
    require_lm_eval()
    with _quietly(quiet):
        # lm-eval's own bootstrap starts processes; the intervals are made from the documents' values here
        from lm_eval import simple_evaluate  # noqa: PLC0415
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
        from lm_eval.tasks import TaskManager  # noqa: PLC0415

        manager = TaskManager(include_path=None if include is None else str(include))
        _check_known(tasks, manager.all_tasks)
        vocabulary = model.get_input_embeddings().num_embeddings
        batch = max(1, min(_LARGEST_BATCH, _BATCH_LOGITS // (vocabulary * longest)))
        try:
            # logarithms of probabilities in bfloat16, lm-eval's default, cannot tell likely options apart
            wrapped = HFLM(
                pretrained=model, tokenizer=tokenizer, max_length=longest, batch_size=batch, softmax_dtype="float32"
            )
            found = simple_evaluate(
                wrapped, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=True
            )
        except Exception as error:  # anything can come out of a task: its code, its data, the network
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InvalidTask(
                f"--lm-eval {','.join(tasks)}: lm-eval failed: {type(error).__name__}: {reason}"
            ) from error
    return [_task(name, found) for name in found["results"]]


def _check_known(tasks: tuple[str, ...], known: list[str]) -> None:
    for task in tasks:
        if task not in known:
            guess = nearest(task, known)
            hint = f"; did you mean {guess!r}?" if guess else ";"
            raise UnknownName(
                f"--lm-eval: unknown task {task!r}{hint} A definition of your own goes into --lm-eval-include DIR"
            )


@contextlib.contextmanager
def _quietly(quiet: bool) -> Iterator[None]:
    """lm-eval writes bars and notices to both outputs; ours is one table or one object."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    kept = io.StringIO() if quiet else sys.stderr
    try:
        logger.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(kept), contextlib.redirect_stderr(kept):
            yield
    finally:
        logger.setLevel(before)


def _task(name: str, found: dict[str, Any]) -> HarnessTask:
    documents = found.get("samples", {}).get(name, [])
    parts = found.get("group_subtasks", {}).get(name) or [name]
    items = sum(int(found.get("n-samples", {}).get(part, {}).get("effective", 0)) for part in parts)
    metrics, samples = {}, {}
    for key, value in found["results"][name].items():
        metric, _, filter_ = key.partition(",")
        if not filter_ or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        shown = metric if filter_ == "none" else key
        values = [each.get(metric) for each in documents if each.get("filter", filter_) == filter_]
        if values and all(isinstance(each, int | float) for each in values):
            samples[shown] = [float(each) for each in values]
        metrics[shown] = _with_interval(float(value), samples.get(shown))
    version = str(found.get("versions", {}).get(name, "?"))
    return HarnessTask(name, version, items, metrics, samples)


def _is_mean(value: float, samples: list[float] | None) -> bool:
    return bool(samples) and abs(sum(samples or []) / len(samples or []) - value) < 1e-9


def _with_interval(value: float, samples: list[float] | None) -> Mean:
    """Wilson's interval for a share of items, the normal one for another mean over them, none for what is neither."""
    if samples is None or not _is_mean(value, samples):
        return Mean(value, value, value)
    if set(samples) <= {0.0, 1.0}:
        return share([each == 1 for each in samples])
    return paired_mean_difference(samples, [0.0] * len(samples))


def harness_figures(ours: HarnessTask, reference: HarnessTask | None = None) -> dict[str, Figure]:
    """The metrics of a task by name; with a reference also its own, and the paired difference of what is a mean.

    A metric is taken for the mean of its documents where that is what it equals; others (perplexities, corpus
    scores) have no paired interval and get no difference.
    """
    if reference is None:
        return {name: Figure(value) for name, value in ours.metrics.items()}
    return {
        name: Figure(value, reference.metrics.get(name), _difference(ours, reference, name))
        for name, value in ours.metrics.items()
    }


def _difference(ours: HarnessTask, reference: HarnessTask, name: str) -> Mean | None:
    mine, other = ours.samples.get(name), reference.samples.get(name)
    if mine is None or other is None or len(mine) != len(other):
        return None
    if not _is_mean(ours.metrics[name].value, mine):
        return None
    if set(mine) | set(other) <= {0.0, 1.0}:
        return paired_share_difference([each == 1 for each in mine], [each == 1 for each in other])
    return paired_mean_difference(mine, other)
