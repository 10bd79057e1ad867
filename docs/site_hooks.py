"""What the site needs beyond `docs/`: pages that lie elsewhere in the repository, and links that fit.

Links in the pages are those of the repository, so that they work where the files are read. For the site, links to
files that are pages of it are turned to these pages; links to other files, such as sources, become their words.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {  # file of the repository -> page of the site
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/LOG.md": "log.md",
    "models/demo/README.md": "demo-model.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    for source, page in ELSEWHERE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn the links of a page, those in code left as they are."""
    place = page.file.src_uri
    source = next((file for file, made in ELSEWHERE.items() if made == place), f"docs/{place}")
    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(lambda found: turned(found, source, place), part) for part in parts[::2]]
    return "".join(parts)


def turned(found: re.Match[str], source: str, place: str) -> str:
    """One link: to a page of the site, or its words.

    Args:
        found: the link.
        source: file of the repository that it stands in.
        place: page of the site that it is shown on.
    """
    words, target, anchor = found[1], found[2], found[3] or ""
    if "://" in target or target.startswith("mailto:"):
        return found[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    page = ELSEWHERE.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
    if page is None or not page.endswith(".md"):
        return words
    return f"[{words}]({posixpath.relpath(page, posixpath.dirname(place) or '.')}{anchor})"
