"""How long work tells how far it is. The command line shows a bar; a library call is silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told about a piece of work as it goes on."""

    def start(self, what: str, total: int) -> None:
        """Work of `total` steps begins."""

    def advance(self, steps: int) -> None:
        """That many steps are done."""


class Silent:
    """Tells nobody."""

    def start(self, what: str, total: int) -> None:
        """Do nothing."""

    def advance(self, steps: int) -> None:
        """Do nothing."""


SILENT = Silent()
