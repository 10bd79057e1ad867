"""`moesaic verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesaic.cli.bundles import Output, takes


@takes(output=Output)
def command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A folder written by `moesaic compress`.")],
    output: Output,
) -> None:
    """Check every file of a packed folder against the hashes in its manifest."""
    from moesaic.packing.manifest import verify

    output.begin(libraries=False)
    with output.bar() as bar:
        count = len(verify(folder, bar)["files"])
    words = f"{folder}: {count} files, all as they were written"
    found = {"folder": str(folder), "files": count, "intact": True}
    output.print(found, None if output.quiet else lambda: print(words))
