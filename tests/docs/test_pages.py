"""The documentation names what there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.test_code_blocks import PAGES, ROOT, name_of

from moesaic.allocate import ALLOCATORS
from moesaic.kernels import BACKENDS
from moesaic.prune import POLICIES
from moesaic.quantize import QUANTIZERS
from moesaic.scores import SCORERS

MADE = {
    **{name: made() for name, made in SCORERS.items()},
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
        name
        for path in (ROOT / "src").rglob("*.py")
        if path.parent.name != "kernels" or path.stem in {*BACKENDS, "__init__", "layer"}  # backends that are in use
        for name in VARIABLE.findall(path.read_text(encoding="utf-8"))
    }
    told = set(VARIABLE.findall((ROOT / "docs" / "environment.md").read_text(encoding="utf-8")))
    assert told == used
