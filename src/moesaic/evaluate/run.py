"""All measures of one model in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from moesaic.errors import InvalidText, UsageError
from moesaic.evaluate.conditions import conditions
from moesaic.evaluate.flat import records as records  # noqa: PLC0414
from moesaic.evaluate.flat import share_figures, speed_figures, task_figures
from moesaic.evaluate.harness import HarnessTask, harness_figures, require_lm_eval, run_lm_eval
from moesaic.evaluate.local_tasks import figures, run_task
from moesaic.evaluate.sizes import measure_sizes
from moesaic.evaluate.speed import measure_speed
from moesaic.evaluate.tasks import EvaluationSet, find_set, read_set
from moesaic.evaluate.texts import Cut, read_texts, text_figures
from moesaic.families import MoeLayer, find_moe_layers
from moesaic.families.skeleton import build_skeleton, load_config
from moesaic.progress import SILENT, Progress
from moesaic.runtime.hf import open_any, open_tokenizer
from moesaic.runtime.skipping import skipping_of
from moesaic.text import bundled_calibration_text

LARGEST_WINDOW = 2048  # tokens, the convention of the papers
PROMPT_TOKENS = 64
PROMPT_CHARACTERS = 4096  # of the bundled text, where there is no other to take the prompt from


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Attributes:
        window: tokens of a window; None for 2048, or what the model can.
        stride: tokens between windows; None for the window.
        max_tokens: use only the first tokens of each text.
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
    text: Path | Sequence[Path] | None,
    *,
    reference: Path | None = None,
    options: EvaluateOptions | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a model folder, packed or not.

    Args:
        folder: the model.
        text: held-out text, or several, such as one a domain; None to measure tasks only.
        reference: the full-precision model to compare with (or any other, packed or not); both are in memory at the
            same time.
        options: how.
        progress: told of every scored token and every item.

    Returns:
        A JSON object, flat but for `routing_layers`, `expert_share_layers`, `texts` (the figures of each of several
        texts), `tasks` and `lm_eval`; figures that were not measured are None. `records` turns it into run records.

    Raises:
        MoesaicError: see `moesaic.errors`.
    """
    options = options or EvaluateOptions()
    texts = read_texts(text)
    if not texts and not options.tasks and not options.lm_eval:
        raise UsageError("nothing to measure: give --text, --tasks or --lm-eval")
    if options.lm_eval:
        require_lm_eval()
    sets = [read_set(find_set(name, options.task_folder), limit=options.task_limit) for name in options.tasks]
    sizes = measure_sizes(folder, trust_remote_code=options.trust_remote_code)
    tokenizer = open_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    sample = [each.content for each in texts] or [bundled_calibration_text()[:PROMPT_CHARACTERS]]
    tokens = [tokenizer(each, add_special_tokens=False, verbose=False)["input_ids"] for each in sample]
    window, stride = _window(options, load_config(folder, trust_remote_code=options.trust_remote_code))
    cuts = [
        Cut.of(each, found, length=window, stride=stride, limit=options.max_tokens)
        for each, found in zip(texts, tokens, strict=False)
    ]
    opened = _open(folder, tokenizer, tokens, reference, options)
    layers = _shared_layers(opened, trust_remote_code=options.trust_remote_code)
    measured = text_figures(opened.model, opened.reference, cuts, layers=layers, progress=progress)
    measured |= _task_parts(opened, sets, options, progress, count=not texts)
    del opened  # the speed is measured in a process of its own, which wants the memory
    speed = None
    if options.speed:
        speed = measure_speed(
            folder,
            tokens[0][: min(PROMPT_TOKENS, window // 2)],
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
        "text": "+".join(each.name for each in texts) or None,
        "window": window if texts else None,
        "stride": stride if texts else None,
        "conditions": conditions(),
    }


def _task_parts(
    opened: _Opened, sets: list[EvaluationSet], options: EvaluateOptions, progress: Progress, *, count: bool
) -> dict[str, Any]:
    """Figures of the tasks, and what there is to say of the policy; `count` its share on them."""
    skipping = skipping_of(opened.model)
    if skipping is not None and count:
        skipping.count()
    found: dict[str, Any] = {
        "tasks": [_local_task(opened, each, progress) for each in sets],
        "lm_eval": _harness(opened, options) if options.lm_eval else [],
        "pruning": None if skipping is None else skipping.name,
    }
    return found | (share_figures(skipping.counted()) if skipping is not None and count else {})


def _open(
    folder: Path, tokenizer: Any, tokens: list[list[int]], reference: Path | None, options: EvaluateOptions
) -> _Opened:
    remote = options.trust_remote_code
    model = open_any(folder, trust_remote_code=remote, pruning=options.pruning)
    largest = max(map(max, tokens))
    if largest >= model.get_input_embeddings().num_embeddings:
        raise InvalidText(f"{folder}: its tokenizer makes token {largest}, which the model does not have")
    if reference is None:
        return _Opened(folder, model, tokenizer, None, None)
    asked = bool(options.tasks or options.lm_eval)  # a reference of a text alone needs no tokenizer
    theirs = open_tokenizer(reference, trust_remote_code=remote) if asked else None
    return _Opened(folder, model, tokenizer, open_any(reference, trust_remote_code=remote), theirs)


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
