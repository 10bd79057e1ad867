"""`moesaic doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from moesaic.cli.bundles import Output, takes

if TYPE_CHECKING:
    from moesaic.planning.doctor import Finding

_SIGNS = {"ok": ("ok", "green"), "better": ("could be better", "yellow"), "missing": ("missing", "red")}


@takes(output=Output)
def command(output: Output) -> None:
    """Say what this machine and installation can do: versions, kernels, threads, memory, disk, optional parts.

    Where something could be better it says why, and the command that changes it.
    """
    from moesaic.planning.doctor import diagnose

    output.begin()
    found = diagnose()
    output.print({"findings": [asdict(each) for each in found]}, lambda: _print(found))


def _print(found: list[Finding]) -> None:
    from rich.text import Text

    from moesaic.cli.console import paper, table

    console = paper()
    made = table("what", "state", "found")
    made.columns[1].justify = made.columns[2].justify = "left"
    for each in found:
        sign, style = _SIGNS[each.state]
        text = Text(each.value)
        if each.remedy:
            text.append(f"\n{each.remedy}", style="dim")
        made.add_row(each.name, Text(sign, style=style), text)
    console.print(made)
