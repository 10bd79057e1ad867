"""`moesaic verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from moesaic.cli import parameters as p


def command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A folder written by `moesaic compress`.")],
    json_: p.Json = False,
    quiet: p.Quiet = False,
) -> None:
    """Check every file of a packed folder against the hashes in its manifest."""
    from moesaic.cli.console import Bar
    from moesaic.packing.manifest import verify

    with Bar(quiet=quiet or json_) as bar:
        manifest = verify(folder, bar)
    if json_:
        print(json.dumps({"folder": str(folder), "files": len(manifest["files"]), "intact": True}))
    elif not quiet:
        print(f"{folder}: {len(manifest['files'])} files, all as they were written")
