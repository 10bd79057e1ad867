"""Evaluation sets in local JSONL files: what they are called, how a line reads, what is asked of the model.

A line is a JSON object of one of three forms, the same one in the whole file (`docs/evaluation.md`):

    {"query": …, "choices": [… , …], "gold": 0}                  which continuation fits the query
    {"context_options": [… , …], "continuation": …, "gold": 0}   which context fits the continuation
    {"context": …, "continuation": …}                            does the model continue with just these words
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import InvalidTask, UsageError
from moesaic.registry import look_up

CHOICE = "choice"
LAST_WORD = "last_word"
_FORMS = (("query", "choices", "gold"), ("context_options", "continuation", "gold"), ("context", "continuation"))
_SHOWN = 40  # characters of a bad value that a message repeats


@dataclass(frozen=True)
class Task:
    """What moesaic knows of an evaluation set by its name.

    Attributes:
        cue: put between the query and its continuation, such as `"\\nAnswer:"`.
    """

    cue: str = ""


_ANSWER = Task(cue="\nAnswer:")
TASKS: dict[str, Task] = {
    "arc_challenge": _ANSWER,
    "arc_easy": _ANSWER,
    "boolq": _ANSWER,
    "copa": Task(),
    "lambada_openai": Task(),
    "openbookqa": Task(),
    "piqa": _ANSWER,
    "winograd_wsc273": Task(),
    "winogrande_xl": Task(),
}


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        place: file and line, for messages.
        contexts: what the model reads before each option.
        continuations: what it is asked to continue with, without the space before it. As many as `contexts`.
        gold: the right option.
    """

    place: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class EvaluationSet:
    """The items of a file.

    Attributes:
        name: of the task, such as `arc_easy`.
        file: name of the file.
        kind: `"choice"` or `"last_word"`.
        items: at least one.
        one_continuation: the options of an item differ in their contexts only, so that no length is to be corrected.
    """

    name: str
    file: str
    kind: str
    items: tuple[Item, ...]
    one_continuation: bool = False


def find_set(name: str, folder: Path | None) -> Path:
    """The file of a task: a path as it is, a registered name as `FOLDER/NAME*.jsonl`.

    Raises:
        UsageError: a name without a folder, or no such file, or more than one.
        UnknownName: neither a file nor a known name.
    """
    path = Path(name)
    if path.suffix == ".jsonl" or path.is_file():
        return path
    look_up(name, TASKS, kind="task")
    if folder is None:
        raise UsageError(
            f"--tasks {name}: say where its file is: --task-folder DIR (it holds {name}*.jsonl), or a path"
        )
    found = sorted(path for path in folder.glob(f"{name}*.jsonl") if path.name.partition(".")[0] == name)
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        many = f"has several ({names}); give the path of one" if found else f"has no {name}*.jsonl"
        raise UsageError(f"--tasks {name}: {folder} {many}")
    return found[0]


def read_set(path: Path, *, limit: int | None = None) -> EvaluationSet:
    """Read and check a file; the task's name is the file's up to the first dot.

    Args:
        path: the file.
        limit: read only the first items.

    Raises:
        InvalidTask: unreadable, empty, or a line that is not of the format; says which and why.
    """
    name = path.name.partition(".")[0]
    cue = TASKS.get(name, Task()).cue
    items: list[Item] = []
    form: tuple[str, ...] = ()
    for place, row in _rows(path):
        form = form or _form_of(row, place)
        if any(key not in row for key in form):
            raise InvalidTask(f"{place}: no {form[[key in row for key in form].index(False)]!r} as in the lines before")
        items.append(_item(row, place, cue))
        if limit is not None and len(items) == limit:
            break
    if not items:
        raise InvalidTask(f"{path}: holds no items")
    kind = LAST_WORD if "gold" not in form else CHOICE
    return EvaluationSet(name, path.name, kind, tuple(items), one_continuation="continuation" in form)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidTask(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidTask(f"{place}: not UTF-8 (byte {error.start} of the line); convert it") from None
        except (ValueError, RecursionError) as error:
            raise InvalidTask(f"{place}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise InvalidTask(f"{place}: holds a JSON {type(row).__name__}, not an object")
        yield place, row


def _form_of(row: dict[str, Any], place: str) -> tuple[str, ...]:
    if "answer" in row and "continuation" not in row:
        raise InvalidTask(
            f"{place}: has an 'answer' that has to be generated, which is not measured here; "
            "use lm-eval for such a task (--lm-eval gsm8k)"
        )
    for form in _FORMS:
        if all(key in row for key in form):
            return form
    forms = "; ".join(", ".join(form) for form in _FORMS)
    raise InvalidTask(f"{place}: has the keys {sorted(row)}, not those of one of the three forms ({forms})")


def _item(row: dict[str, Any], place: str, cue: str) -> Item:
    if "choices" in row:
        choices = _texts(row, "choices", place)
        contexts = (_text(row["query"], "query", place, empty=True).rstrip() + cue,) * len(choices)
        return Item(place, contexts, tuple(choice.lstrip() for choice in choices), _gold(row, len(choices), place))
    continuation = _text(row["continuation"], "continuation", place).lstrip()
    if "context_options" in row:
        options = _texts(row, "context_options", place)
        contexts = tuple(option.rstrip() + cue for option in options)
        return Item(place, contexts, (continuation,) * len(options), _gold(row, len(options), place))
    return Item(place, (_text(row["context"], "context", place).rstrip() + cue,), (continuation,), 0)


def _text(value: Any, key: str, place: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (empty or value.strip()):
        raise InvalidTask(f"{place}: {key!r} is {_shown(value)}; text is needed")
    return value


def _texts(row: dict[str, Any], key: str, place: str) -> list[str]:
    values = row[key]
    if not isinstance(values, list) or len(values) < 2:
        raise InvalidTask(f"{place}: {key!r} is {_shown(values)}; a list of two texts or more is needed")
    return [_text(value, f"{key}[{number}]", place) for number, value in enumerate(values)]


def _gold(row: dict[str, Any], options: int, place: str) -> int:
    gold = row["gold"]
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < options:
        raise InvalidTask(f"{place}: 'gold' is {_shown(gold)}, but there are options 0 to {options - 1}")
    return gold


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
