"""The examples of the documentation run.

Every ```python block of `CONTRIBUTING.md` and `docs/` is executed: the blocks of a file one after the other, in one
process and one namespace, in an empty folder that holds (the hidden prelude)

    checkpoint/         a tiny random Mixtral checkpoint
    initial/            the same architecture with other weights, in the part of the checkpoint before training
    scores.json         its scores by the default rule
    models/demo/        the bundled model, where it is there

Every line of `docs/index.md` that begins with `moesaic` (or `$ moesaic`) in a ```console or ```sh block is run too.

Importing torch and transformers takes most of the time, so that a fork server imports them once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECONDS = 300  # for one page; far more than any needs

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)  # also inside a list
_PRELOAD = ["torch", "moesaic.cli", "moesaic.evaluate.run", "moesaic.pipeline", "moesaic.runtime.hf"]
_PRELOAD += ["transformers.models.mixtral.modeling_mixtral", "transformers.generation.utils"]


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of a page in some languages: the line that each begins on, and its text."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        if found[2] in languages:
            yield text.count("\n", 0, found.start(3)) + 1, textwrap.dedent(found[3])


def commands(page: Path) -> list[list[str]]:
    """The `moesaic` lines of a page, as lists of words."""
    lines = [
        line.removeprefix("$ ")
        for _, block in blocks(page, "console", "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("moesaic ")]


def name_of(page: Path) -> str:
    """The path of a page as it is written in the repository."""
    return page.relative_to(ROOT).as_posix()


WITH_PYTHON = [page for page in PAGES if any(blocks(page, "python"))]


@pytest.fixture(scope="session")
def prelude(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[[str], Path]) -> Path:
    """The folder whose contents every page finds; see the top of this file."""
    from tests.tiny import save_tiny  # noqa: PLC0415

    from moesaic.checkpoint.reader import Checkpoint  # noqa: PLC0415
    from moesaic.options import CompressOptions  # noqa: PLC0415
    from moesaic.pipeline import score  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("prelude")
    (folder / "checkpoint").symlink_to(tiny_checkpoint("mixtral"))
    save_tiny(folder / "initial", "mixtral", seed=1)
    scores = score(Checkpoint.open(folder / "checkpoint"), CompressOptions(bits=2.5))
    (folder / "scores.json").write_text(json.dumps(scores.to_json()))
    if (DEMO / "config.json").is_file():
        (folder / "models").mkdir()
        (folder / "models" / "demo").symlink_to(DEMO)
    return folder


@pytest.fixture
def folder(prelude: Path, tmp_path: Path) -> Path:
    """A folder of its own for one page."""
    for path in prelude.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run(page: Path, folder: Path) -> None:
    """An example that no longer works misleads everybody who starts from it."""
    needs_demo = any("models/demo" in text for _, text in blocks(page, "python"))
    if needs_demo and not (DEMO / "config.json").is_file():
        pytest.skip("its examples use the bundled model, and models/demo has no config.json here")
    run(folder, execute, [(name_of(page), line, text) for line, text in blocks(page, "python")])


@pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="models/demo has no config.json here")
def test_commands_of_the_first_steps_run(folder: Path) -> None:
    """The first steps are what a newcomer types: each command has to end with exit code 0, in the order shown."""
    found = commands(ROOT / "docs" / "index.md")
    verbs = [words[1] for words in found]
    assert {"compress", "evaluate", "generate", "verify", "score", "allocate"} <= set(verbs)
    for words in found:
        run(folder, call, words)


def run(folder: Path, work: Callable[[object], None], argument: object) -> None:
    """Do `work(argument)` in a process of its own in that folder; fail with what it printed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    output = folder / "output.txt"
    process = context.Process(target=inside, args=(folder, output, work, argument))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"took more than {SECONDS} s: {argument}")
    if process.exitcode != 0:
        pytest.fail(f"exit code {process.exitcode}: {output.read_text()}", pytrace=False)


def inside(folder: Path, output: Path, work: Callable[[object], None], argument: object) -> None:
    """What the process does: its output goes to a file, and an error gives exit code 1."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    torch.set_num_threads(1)  # the models are tiny: threads would mostly wait for each other
    try:
        work(argument)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def execute(found: list[tuple[str, int, str]]) -> None:
    """Run blocks of Python as one module, under the line numbers of their page."""
    module = type(sys)("example")
    sys.modules["example"] = module  # dataclasses look their module up
    for page, line, text in found:
        code = compile("\n" * (line - 1) + text, page, "exec")
        exec(code, vars(module))


def call(words: list[str]) -> None:
    """Run the command line on those words."""
    from moesaic.cli import main  # noqa: PLC0415

    sys.argv = words
    main()
