"""What the commands share: progress bars, quiet libraries, sizes for people."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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


def size_text(size: float) -> str:
    """Bytes for people, in powers of ten: `11.7 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def note(text: str, *, quiet: bool = False) -> None:
    """One line on standard error."""
    if not quiet:
        print(text, file=sys.stderr)
