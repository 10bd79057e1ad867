"""The tests mirror the source: name of the thing = name of its file = name of its test file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "moesaic"
TESTS = ROOT / "tests"
NOT_YET: tuple[str, ...] = ()  # files whose tests are still to come


def wanted_test(path: Path) -> Path | None:
    """Where the tests of a source file belong; None for private files and packages without logic."""
    place = path.relative_to(SOURCE)
    if place.name == "__init__.py":
        logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        has_logic = any(isinstance(node, logic) for node in ast.parse(path.read_text(encoding="utf-8")).body)
        return TESTS / place.parent / "test_init.py" if has_logic else None
    if place.name.startswith("_"):
        return None
    return TESTS / place.parent / f"test_{place.name}"


def own_test_files() -> list[Path]:
    """The test files of the package; those of the experiments have a style of their own."""
    return sorted(path for path in TESTS.rglob("test_*.py") if TESTS / "experiments" not in path.parents)


def name_of(path: Path) -> str:
    """A short name for the list of tests."""
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=name_of)
def test_every_source_file_has_its_test_file(path: Path) -> None:
    """A new module without tests is noticed at once."""
    wanted = wanted_test(path)
    if name_of(path).startswith(NOT_YET) and wanted is not None and not wanted.is_file():
        pytest.skip("its tests are still to come")
    assert wanted is None or wanted.is_file(), f"{name_of(path)}: no {wanted.relative_to(ROOT)}"


@pytest.mark.parametrize("path", own_test_files(), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_every_test_says_what_it_guards(path: Path) -> None:
    """Each test file and each test function has a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    silent = [node.name for node in functions if not ast.get_docstring(node)]
    assert ast.get_docstring(tree)
    assert not silent
