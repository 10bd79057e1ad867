"""`moesaic verify`; what it finds is in the tests of bad input."""

from __future__ import annotations

import json
from pathlib import Path

from tests.processes import call_cli


def test_an_intact_folder(packed: Path) -> None:
    """An intact folder is called so, for people and as JSON, and with --quiet by the exit code alone."""
    files = len(list(packed.iterdir())) - 1
    assert call_cli("verify", packed).out == f"{packed}: {files} files, all as they were written\n"
    found = json.loads(call_cli("verify", packed, "--json").out)
    assert found == {"folder": str(packed), "files": files, "intact": True}
    quiet = call_cli("verify", packed, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
