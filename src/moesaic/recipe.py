"""Options in a file: a YAML mapping from the names of options to values.

bits: 2.5
rule: max_var
group_size: 128
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import UsageError
from moesaic.registry import nearest

RECIPE = "recipe.yaml"  # its name in a packed folder
_HEAD = "# The resolved options of this folder. To use them again: moesaic compress MODEL --out FOLDER --recipe FILE\n"


def read_recipe(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The options in a recipe, by name with underscores; those without a value are left out.

    Args:
        path: the file.
        known: names that may be in it, with underscores.

    Raises:
        UsageError: no such file, not YAML, not a mapping, or a name that is not known, with the nearest that is.
    """
    import yaml  # noqa: PLC0415  (only where there is a recipe)

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--recipe {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--recipe {path}: not YAML ({error})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"--recipe {path}: holds a {type(data).__name__}; give lines such as `bits: 2.5`")
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name not in known:
            guess = nearest(name, sorted(known))
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise UsageError(f"--recipe {path}: unknown option {key!r}{hint} Known: {', '.join(sorted(known))}.")
        if value is not None:
            found[name] = value
    return found


def recipe_text(options: Mapping[str, Any]) -> str:
    """The file form of resolved options, the same for the same options."""
    import yaml  # noqa: PLC0415

    return _HEAD + str(yaml.safe_dump(dict(options), sort_keys=True, allow_unicode=True))
