"""Options in a YAML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesaic.errors import UsageError
from moesaic.recipe import read_recipe, recipe_text

KNOWN = ("bits", "group_size", "rule", "levels", "symmetric")


def written(folder: Path, text: str) -> Path:
    """A recipe of that text."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_options_by_name(tmp_path: Path) -> None:
    """Names may be spelled with dashes or underscores; what has no value is left out."""
    path = written(tmp_path, "bits: 2.5\ngroup-size: 128\nlevels: [2, 3]\nsymmetric: no\nrule:\n")
    assert read_recipe(path, KNOWN) == {"bits": 2.5, "group_size": 128, "levels": [2, 3], "symmetric": False}
    assert read_recipe(written(tmp_path, "# nothing yet\n"), KNOWN) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grup_size: 64\n", "unknown option 'grup_size'; did you mean 'group_size'? Known: bits, group_size"),
        ("- bits\n", "holds a list"),
        ("bits: [1\n", "not YAML"),
        ("!!python/object/apply:os.system [ls]\n", "not YAML"),
        ("1: 2\n", "unknown option 1"),
    ],
)
def test_what_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    """A wrong name is answered with the nearest, anything else with what it is; code in YAML is never run."""
    with pytest.raises(UsageError) as caught:
        read_recipe(written(tmp_path, text), KNOWN)
    assert message in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(UsageError, match="nowhere"):
        read_recipe(tmp_path / "nowhere.yaml", KNOWN)


def test_text_and_back(tmp_path: Path) -> None:
    """What is written is read again, and the order of the options does not change the bytes."""
    options = {"bits": 2.5, "group_size": 64, "levels": [1, 2], "symmetric": True}
    assert recipe_text(options) == recipe_text(dict(reversed(options.items())))
    assert read_recipe(written(tmp_path, recipe_text(options)), KNOWN) == options
