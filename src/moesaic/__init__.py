"""moesaic: Mixture-of-Experts models with a bit-width of its own for every expert.

    import moesaic
    moesaic.compress("mixtral-8x7b", "packed", moesaic.CompressOptions(bits=2.5))
    model = moesaic.load("packed")

After `import moesaic`, transformers' `AutoModelForCausalLM.from_pretrained` opens packed folders too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moesaic.runtime.on_import import register_when_imported

if TYPE_CHECKING:
    from moesaic.checkpoint.reader import Checkpoint as Checkpoint
    from moesaic.errors import MoesaicError as MoesaicError
    from moesaic.options import CompressOptions as CompressOptions
    from moesaic.packing.manifest import verify as verify
    from moesaic.pipeline import compress as compress
    from moesaic.records import BitPlan as BitPlan
    from moesaic.records import Budget as Budget
    from moesaic.records import RunRecord as RunRecord
    from moesaic.records import Scores as Scores
    from moesaic.runtime.hf import load as load

__version__ = "0.1.0"

# name -> where it is defined; loaded when asked for, since torch and transformers take seconds to import
_PUBLIC = {
    "BitPlan": "moesaic.records",
    "Budget": "moesaic.records",
    "Checkpoint": "moesaic.checkpoint.reader",
    "CompressOptions": "moesaic.options",
    "MoesaicError": "moesaic.errors",
    "RunRecord": "moesaic.records",
    "Scores": "moesaic.records",
    "compress": "moesaic.pipeline",
    "load": "moesaic.runtime.hf",
    "verify": "moesaic.packing.manifest",
}
__all__ = [
    "BitPlan",
    "Budget",
    "Checkpoint",
    "CompressOptions",
    "MoesaicError",
    "RunRecord",
    "Scores",
    "__version__",
    "compress",
    "load",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'moesaic' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__


register_when_imported()
