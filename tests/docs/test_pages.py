"""The documentation names what there is, and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.docs.test_code_blocks import PAGES, ROOT, name_of

from moesaic.allocate import ALLOCATORS
from moesaic.prune import POLICIES
from moesaic.quantize import QUANTIZERS
from moesaic.scores import COSTS, SCORERS

MADE = {
    **{name: made() for name, made in SCORERS.items()},
    **{f"{name} (costs)": made() for name, made in COSTS.items()},
    **{name: made() for name, made in ALLOCATORS.items()},
    **{name: made() for name, made in QUANTIZERS.items()},
    **{name: made() for name, made in POLICIES.items()},
}
VARIABLE = re.compile(r"MOESAIC_[A-Z_]+")


@pytest.mark.parametrize("name", MADE)
def test_every_registered_method_has_a_page(name: str) -> None:
    """The page of a method has the name of its file, so that a reader of one finds the other."""
    page = ROOT / "docs" / "methods" / f"{type(MADE[name]).__module__.rpartition('.')[2]}.md"
    assert page.is_file(), f"no page for {name}"
    name = name.removesuffix(" (costs)")
    assert f"`{name}`" in page.read_text(encoding="utf-8"), f"{page.name} does not say the name `{name}`"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """A link to a file of the repository leads to a file that is there."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_every_environment_variable_has_its_place() -> None:
    """A switch that is not on the page is not known, and one that is only on the page does nothing."""
    used = {
        name for path in (ROOT / "src").rglob("*.py") for name in VARIABLE.findall(path.read_text(encoding="utf-8"))
    }
    used |= set(re.findall(r"\$ENV\{(\w+)\}", (ROOT / "native" / "CMakeLists.txt").read_text(encoding="utf-8")))
    told = set(VARIABLE.findall((ROOT / "docs" / "environment.md").read_text(encoding="utf-8")))
    assert told == used


def test_every_variable_that_is_read_is_on_the_page() -> None:
    """What the code asks of the environment, of other programs too, is documented."""
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    for path in (ROOT / "src").rglob("*.py"):
        for name in read_from_environment(path):
            assert f"`{name}`" in page or f"`{name}=" in page, f"{name_of(path)} reads {name}"


def read_from_environment(path: Path) -> set[str]:
    """The names in `os.environ.get("X")`, `os.environ["X"]`, `"X" in os.environ` and `os.getenv("X")`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call | ast.Subscript | ast.Compare):
            text = ast.unparse(node)
            if re.match(r"(os\.)?(environ\b|getenv\()", text) or re.search(r" in os\.environ$", text):
                found |= set(re.findall(r"'([A-Z][A-Z0-9_]+)'", text))
    return found
