"""All measures of one model in one go."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from moesaic.errors import InvalidText, UsageError
from moesaic.evaluate.conditions import conditions
from moesaic.evaluate.flat import quality_figures, routing_figures, speed_figures, task_figures
from moesaic.evaluate.flat import records as records  # noqa: PLC0414
from moesaic.evaluate.harness import HarnessTask, harness_figures, require_lm_eval, run_lm_eval
from moesaic.evaluate.local_tasks import figures, run_task
from moesaic.evaluate.quality import measure_quality
from moesaic.evaluate.routing import RoutingComparison
from moesaic.evaluate.sizes import measure_sizes
from moesaic.evaluate.speed import measure_speed
from moesaic.evaluate.tasks import EvaluationSet, find_set, read_set
from moesaic.families import MoeLayer, find_moe_layers
from moesaic.families.skeleton import build_skeleton, load_config
from moesaic.progress import SILENT, Progress
from moesaic.runtime.hf import open_any, open_tokenizer
from moesaic.runtime.skipping import skipping_of
from moesaic.text import Window, bundled_calibration_text, read_text, windows

LARGEST_WINDOW = 2048  # tokens, the convention of the papers
PROMPT_TOKENS = 64
PROMPT_CHARACTERS = 4096  # of the bundled text, where there is no other to take the prompt from


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
        tasks: evaluation sets: paths of JSONL files, or names of `evaluate.tasks.TASKS`.
        task_folder: where the files of these names are.
        task_limit: use only the first items of each task, also of lm-eval's.
        lm_eval: names of tasks of lm-eval.
        lm_eval_include: folder of task definitions for lm-eval.
    """

    window: int | None = None
    stride: int | None = None
    max_tokens: int | None = None
    speed: bool = True
    new_tokens: int = 32
    threads: int | None = None
    pruning: bool = True
    trust_remote_code: bool = False
    tasks: tuple[str, ...] = ()
    task_folder: Path | None = None
    task_limit: int | None = None
    lm_eval: tuple[str, ...] = ()
    lm_eval_include: Path | None = None


@dataclass(frozen=True)
class _Opened:
    """A model, what goes with it, and the reference."""

    folder: Path
    model: PreTrainedModel
    tokenizer: Any
    reference: PreTrainedModel | None
    reference_tokenizer: Any


def evaluate(
    folder: Path,
    text: Path | None,
    *,
    reference: Path | None = None,
    options: EvaluateOptions | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a model folder, packed or not.

    Args:
        folder: the model.
        text: held-out text; None to measure tasks only.
        reference: the full-precision model to compare with (or any other, packed or not); both are in memory at the
            same time.
        options: how.
        progress: told of every scored token and every item.

    Returns:
        A JSON object, flat but for `routing_layers`, `tasks` and `lm_eval`; figures that were not measured are None.
        `records` turns it into run records.

    Raises:
        MoesaicError: see `moesaic.errors`.
    """
    options = options or EvaluateOptions()
    if text is None and not options.tasks and not options.lm_eval:
        raise UsageError("nothing to measure: give --text, --tasks or --lm-eval")
    if options.lm_eval:
        require_lm_eval()
    content = None if text is None else read_text(text)
    sets = [read_set(find_set(name, options.task_folder), limit=options.task_limit) for name in options.tasks]
    sizes = measure_sizes(folder, trust_remote_code=options.trust_remote_code)
    tokenizer = open_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    sample = bundled_calibration_text()[:PROMPT_CHARACTERS] if content is None else content
    tokens = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
    window, stride = _window(options, load_config(folder, trust_remote_code=options.trust_remote_code))
    cut = None if content is None else windows(tokens, length=window, stride=stride, limit=options.max_tokens)
    opened = _open(folder, tokenizer, tokens, reference, options)
    skipping = skipping_of(opened.model)
    if skipping is not None:
        skipping.count()
    measured = {
        **_text_figures(opened, cut, progress, trust_remote_code=options.trust_remote_code),
        "tasks": [_local_task(opened, each, progress) for each in sets],
        "lm_eval": _harness(opened, options) if options.lm_eval else [],
    }
    measured |= {
        "pruning": None if skipping is None else skipping.name,
        "expert_share": None if skipping is None else skipping.share(),
        "expert_share_layers": None if skipping is None else skipping.shares(),
    }
    del opened  # the speed is measured in a process of its own, which wants the memory
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
        "reference": None if reference is None else reference.name,
        **measured,
        **vars(sizes),
        **speed_figures(speed),
        "text": None if text is None else text.name,
        "window": None if text is None else window,
        "stride": None if text is None else stride,
        "conditions": conditions(),
    }


def _open(folder: Path, tokenizer: Any, tokens: list[int], reference: Path | None, options: EvaluateOptions) -> _Opened:
    remote = options.trust_remote_code
    model = open_any(folder, trust_remote_code=remote, pruning=options.pruning)
    if max(tokens) >= model.get_input_embeddings().num_embeddings:
        raise InvalidText(f"{folder}: its tokenizer makes token {max(tokens)}, which the model does not have")
    if reference is None:
        return _Opened(folder, model, tokenizer, None, None)
    asked = bool(options.tasks or options.lm_eval)  # a reference of a text alone needs no tokenizer
    theirs = open_tokenizer(reference, trust_remote_code=remote) if asked else None
    return _Opened(folder, model, tokenizer, open_any(reference, trust_remote_code=remote), theirs)


def _text_figures(
    opened: _Opened, cut: list[Window] | None, progress: Progress, *, trust_remote_code: bool
) -> dict[str, Any]:
    if cut is None:
        return {**quality_figures(None), **routing_figures(None)}
    layers = _shared_layers(opened, trust_remote_code=trust_remote_code)
    with contextlib.ExitStack() as stack:
        routing = None
        if opened.reference is not None and layers:
            routing = stack.enter_context(RoutingComparison(opened.model, opened.reference, layers))
        quality = measure_quality(
            opened.model,
            cut,
            reference=opened.reference,
            progress=progress,
            after=None if routing is None else routing.add,
        )
    return {**quality_figures(quality), **routing_figures(routing)}


def _shared_layers(opened: _Opened, *, trust_remote_code: bool) -> list[MoeLayer]:
    """The expert layers, if the reference has the same: routers of other layers cannot be compared."""
    if opened.reference is None:
        return []
    skeleton = build_skeleton(
        load_config(opened.folder, trust_remote_code=trust_remote_code), trust_remote_code=trust_remote_code
    )
    layers = find_moe_layers(skeleton, opened.model.config.model_type)
    theirs = {name for name, _ in opened.reference.named_modules()}
    return layers if all(layer.name in theirs for layer in layers) else []


def _local_task(opened: _Opened, questions: EvaluationSet, progress: Progress) -> dict[str, Any]:
    ours = run_task(opened.model, opened.tokenizer, questions, longest=_longest(opened.model.config), progress=progress)
    theirs = None
    if opened.reference is not None:
        longest = _longest(opened.reference.config)
        theirs = run_task(opened.reference, opened.reference_tokenizer, questions, longest=longest, progress=progress)
    return {
        "task": questions.name,
        "file": questions.file,
        "kind": questions.kind,
        "items": len(questions.items),
        "cut": ours.cut,
        "figures": task_figures(figures(ours, theirs)),
    }


def _harness(opened: _Opened, options: EvaluateOptions) -> list[dict[str, Any]]:
    how: dict[str, Any] = {"include": options.lm_eval_include, "limit": options.task_limit}
    longest = _longest(opened.model.config)
    ours = run_lm_eval(opened.model, opened.tokenizer, options.lm_eval, longest=longest, **how)
    theirs: dict[str, HarnessTask] = {}
    if opened.reference is not None:
        longest = _longest(opened.reference.config)
        found = run_lm_eval(opened.reference, opened.reference_tokenizer, options.lm_eval, longest=longest, **how)
        theirs = {each.task: each for each in found}
    return [
        {
            "task": each.task,
            "version": each.version,
            "items": each.items,
            "figures": task_figures(harness_figures(each, theirs.get(each.task))),
        }
        for each in ours
    ]


def _longest(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or LARGEST_WINDOW)


def _window(options: EvaluateOptions, config: Any) -> tuple[int, int]:
    possible = _longest(config)
    window = options.window or min(LARGEST_WINDOW, possible)
    if window > possible:
        raise UsageError(f"--window {window}: the model reads at most {possible} tokens")
    stride = options.stride or window
    if stride > window:
        raise UsageError(f"--stride {stride} is larger than the window of {window} tokens: some would not be scored")
    return window, stride
