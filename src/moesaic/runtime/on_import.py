"""Register the packed format with transformers as soon as transformers is imported, and not before.

`import moesaic` has to make `AutoModel….from_pretrained` understand packed folders, but importing transformers and
torch takes seconds, which the command line should not spend before it knows what is asked of it. So the registration
waits for the module that it registers with.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_AWAITED = "transformers.quantizers.auto"
_TABLE = "AUTO_QUANTIZATION_CONFIG_MAPPING"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the awaited module as everybody would, and adds the registration to its loading."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        methods = vars(module)
        methods[_TABLE] = _Awaiting(methods[_TABLE])


class _Awaiting(dict):  # type: ignore[type-arg]
    """transformers' table of methods, which loads moesaic's part when `moesaic` is looked up for the first time."""

    def __contains__(self, key: object) -> bool:
        if key == "moesaic" and not super().__contains__(key) and "moesaic.runtime.hf" not in sys.modules:
            import moesaic.runtime.hf  # noqa: F401
        return super().__contains__(key)


def register_when_imported() -> None:
    """Register now if transformers is there already, else when it comes."""
    if _AWAITED in sys.modules:
        import moesaic.runtime.hf  # noqa: F401
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
