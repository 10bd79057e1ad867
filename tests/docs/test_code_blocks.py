"""The examples of the documentation run.

Every fenced block of `README.md`, `CONTRIBUTING.md` and `docs/` is accounted for by its language:

- `python`: executed, the blocks of a page one after the other, in one process and one namespace.
- `sh`, `console`: every line that begins with `moesaic` (in `console`: `$ moesaic`) is run, in order. The output that
  a `console` block shows is compared by its words, numbers left out.
- `json`, `yaml`: parsed.
- `text`: output, not code.

A block that cannot run has a line `<!-- not run: REASON -->` before it, one whose output is another every time
`<!-- output differs: REASON -->`; the numbers of both are counted in a test. A page runs in a folder that holds (the
hidden prelude)

    checkpoint/, MODEL/         a tiny random Mixtral checkpoint; MODEL with a tokenizer
    initial/, INITIAL_CHECKPOINT/   the same architecture with other weights, as the checkpoint before training
    PACKED/                     MODEL, compressed
    scores.json, COSTS.json, stats.safetensors, TEXT, HELDOUT.txt
    models/demo/                the bundled model, where it is there

Importing torch and transformers takes most of the time, so that a fork server imports them once.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import textwrap
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECONDS = 300  # for one page; far more than any needs

_FENCE = re.compile(  # with the marker before it; also inside a list
    r"^(?: *<!-- (not run|output differs): [^\n]+ -->\n)?( *)```(\w*)[^\n]*\n(.*?)^\2```$", re.MULTILINE | re.DOTALL
)
LANGUAGES = {"python", "sh", "console", "json", "yaml", "text"}
NOT_RUN = {
    "docs/evidence.md": 2,
    "README.md": 2,
    "CONTRIBUTING.md": 1,
    "docs/index.md": 1,
    "docs/how/fit-a-model.md": 1,
}  # installs and downloads
DIFFERS = {"docs/index.md": 1}  # sampled text
_PRELOAD = ["torch", "moesaic.cli", "moesaic.evaluate.run", "moesaic.pipeline", "moesaic.runtime.hf"]
_PRELOAD += ["transformers.models.mixtral.modeling_mixtral", "transformers.generation.utils"]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of the page that its text begins on.
        language: as the fence says.
        text: what is in it.
        marker: `not run`, `output differs` or "".
    """

    line: int
    language: str
    text: str
    marker: str


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """Fenced blocks of a page in some languages; with none named, all of them, also those that cannot run."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        marker, language = found[1] or "", found[3]
        if not languages or (language in languages and marker != "not run"):
            yield Block(text.count("\n", 0, found.start(4)) + 1, language, textwrap.dedent(found[4]), marker)


def commands(block: Block) -> list[tuple[list[str], str]]:
    """The `moesaic` lines of a block as lists of words, each with the output that the block shows for it."""
    found: list[tuple[list[str], str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        command = line.removeprefix("$ ")
        if command.startswith("moesaic ") and (block.language == "sh" or line.startswith("$ ")):
            found.append((shlex.split(command, comments=True), ""))
        elif found and block.language == "console" and block.marker != "output differs":
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def name_of(page: Path) -> str:
    """The path of a page as it is written in the repository."""
    return page.relative_to(ROOT).as_posix()


WITH_PYTHON = [page for page in PAGES if any(blocks(page, "python"))]
WITH_COMMANDS = [page for page in PAGES if any(commands(block) for block in blocks(page, "sh", "console"))]


@pytest.fixture(scope="session")
def prelude(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[[str], Path]) -> Path:
    """The folder whose contents every page finds; see the top of this file."""
    from tests.talking import talking_copy, write_text  # noqa: PLC0415
    from tests.tiny import save_tiny  # noqa: PLC0415

    from moesaic.checkpoint.reader import Checkpoint  # noqa: PLC0415
    from moesaic.options import CompressOptions  # noqa: PLC0415
    from moesaic.pipeline import score  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("prelude")
    (folder / "checkpoint").symlink_to(tiny_checkpoint("mixtral"))
    save_tiny(folder / "initial", "mixtral", seed=1)
    scores = score(Checkpoint.open(folder / "checkpoint"), CompressOptions(bits=2.5))
    (folder / "scores.json").write_text(json.dumps(scores.to_json()))
    talking_copy(tiny_checkpoint("mixtral"), folder / "MODEL")
    (folder / "INITIAL_CHECKPOINT").symlink_to(folder / "initial")
    write_text(folder / "TEXT", 3000)
    write_text(folder / "HELDOUT.txt")
    costs = {name: [[9, 4, 1]] * len(row) for name, row in scores.layers.items()}
    layers = {name: {"costs": rows} for name, rows in costs.items()}
    (folder / "COSTS.json").write_text(json.dumps({"format": "moesaic-costs/1", "bits": [1, 2, 3], "layers": layers}))
    run(folder, call_all, [(["moesaic", "calibrate", "MODEL", "-o", "stats.safetensors", "--quiet"], "")])
    run(folder, call_all, [(["moesaic", "compress", "MODEL", "-o", "PACKED", "--bits", "2.5", "--quiet"], "")])
    if (DEMO / "config.json").is_file():
        (folder / "models").mkdir()
        (folder / "models" / "demo").symlink_to(DEMO)
    return folder


@pytest.fixture
def folder(prelude: Path, tmp_path: Path) -> Path:
    """A folder of its own for one page."""
    for path in prelude.iterdir():
        if path.name == "PACKED":
            shutil.copytree(path, tmp_path / path.name)  # pages put policies in it
        else:
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run(page: Path, folder: Path) -> None:
    """An example that no longer works misleads everybody who starts from it."""
    skip_without_demo(page)
    run(folder, execute, [(name_of(page), block.line, block.text) for block in blocks(page, "python")])


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_run(page: Path, folder: Path) -> None:
    """Each command ends with exit code 0 and prints what the page shows, in the order of the page."""
    skip_without_demo(page)
    run(folder, call_all, [each for block in blocks(page, "sh", "console") for each in commands(block)])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_data_blocks_are_what_they_say(page: Path) -> None:
    """A file form that cannot be read misleads whoever writes one like it."""
    for block in blocks(page, "json"):
        json.loads(block.text)
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block.text)


def test_every_block_is_accounted_for() -> None:
    """No block escapes by a language that nobody runs, and those that say that they cannot run are as many as known."""
    every = [(page, block) for page in PAGES for block in blocks(page)]
    assert {block.language for _, block in every} <= LANGUAGES
    for marker, known in (("not run", NOT_RUN), ("output differs", DIFFERS)):
        assert Counter(name_of(page) for page, block in every if block.marker == marker) == known
    silent = [
        f"{name_of(page)}:{block.line}"
        for page, block in every
        if block.language in ("sh", "console") and block.marker != "not run" and not commands(block)
    ]
    assert not silent, "blocks without a command that is run, and without a reason"


def test_the_first_steps_show_every_stage() -> None:
    """The first steps are what a newcomer types; they go all the way."""
    verbs = {words[1] for block in blocks(ROOT / "docs" / "index.md", "console") for words, _ in commands(block)}
    assert {"compress", "evaluate", "generate", "verify", "score", "allocate", "report"} <= verbs


def skip_without_demo(page: Path) -> None:
    """Skip a page whose examples use the bundled model where that is not there."""
    if "models/demo" in page.read_text(encoding="utf-8") and not (DEMO / "config.json").is_file():
        pytest.skip("its examples use the bundled model, and models/demo has no config.json here")


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


def call_all(found: list[tuple[list[str], str]]) -> None:
    """Run the command line on each list of words; the output has to have the words that are shown with it."""
    for words, shown in found:
        if "-o" in words:  # every example stands for itself
            shutil.rmtree(words[words.index("-o") + 1], ignore_errors=True)
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard):
            call(words)
        missing = set(words_of(shown)) - set(words_of(heard.getvalue()))
        if missing:
            raise AssertionError(
                f"{shlex.join(words)}: the page shows {sorted(missing)}, the output is\n{heard.getvalue()}"
            )


def words_of(output: str) -> list[str]:
    """The words of an output without frames and numbers."""
    return [word for word in re.findall(r"[^\s│┃┏┓┗┛┡┩┳╇┴┬├┤└┘╷╵─━]+", output) if not re.search(r"\d|…", word)]


def call(words: list[str]) -> None:
    """Run the command line on those words; any exit code but 0 is an error."""
    from moesaic.cli import main  # noqa: PLC0415

    sys.argv = words
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{shlex.join(words)}: exit code {end.code}") from None
