"""What the commands share: progress bars, quiet libraries, sizes for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from moesaic.report.numbers import size_text as size_text  # noqa: PLC0414


class Bar:
    """A progress bar on standard error; silent when that is not a terminal, or when asked to be."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, what: str, total: int) -> None:
        """A piece of work begins."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=total)

    def advance(self, steps: int) -> None:
        """Part of it is done."""
        if self._task is not None:
            self._progress.advance(self._task, steps)


def quiet_libraries() -> None:
    """Keep the notices and bars of transformers out of our output."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def set_threads(threads: int | None) -> None:
    """Use that many threads for torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def count_text(count: float) -> str:
    """A number of things for people: `46.7 G`."""
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} T"


def duration_text(seconds: float) -> str:
    """A time for people: `42 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def paper() -> Console:
    """Where results are printed: standard output, as wide as the terminal, 100 columns elsewhere."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=100)


def table(*heads: str) -> Table:
    """A plain table: the first column to the left, the others, which are figures, to the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=True, show_edge=False, header_style="bold")
    for place, head in enumerate(heads):
        made.add_column(head, justify="right" if place else "left", no_wrap=place < 2)
    return made


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Lines of a name and what is to be said of it."""
    made = Table.grid(padding=(0, 1, 0, 2), pad_edge=True)
    made.add_column(no_wrap=True)
    made.add_column()
    for name, words in rows:
        made.add_row(name, words)
    return made


def note(text: str, *, quiet: bool = False) -> None:
    """One line on standard error."""
    if not quiet:
        print(text, file=sys.stderr)
