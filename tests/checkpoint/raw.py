"""safetensors files made by hand, so that they can be wrong in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def write_raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with that header (text, bytes or JSON) and data; `length` lies about the header's size."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), begin: int = 0, end: int = 8) -> dict[str, Any]:
    """A header entry."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of a single-file checkpoint, or with None remove them; `__` in names stands for a dot."""
    path = folder / "model.safetensors"
    held = load_file(path)
    for key, tensor in tensors.items():
        name = key.replace("__", ".")
        if tensor is None:
            del held[name]
        else:
            held[name] = tensor
    save_file(held, path, metadata={"format": "pt"})
