"""The documentation site builds without a warning, and shows the whole of the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.test_code_blocks import ROOT

pytest.importorskip("mkdocs", reason="needs mkdocs: pip install 'moesaic[docs]'")


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """A broken link, a page without a place or a docstring that cannot be read stops the build; pages load nothing."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if not (tmp_path / page.with_suffix(".html")).is_file()] == []
    assert "compress" in (tmp_path / "api.html").read_text(encoding="utf-8")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="https?://', text) == []
