"""How much memory does a loaded packed model take, over its files' size and the libraries?

python -m benchmarks.load PACKED_FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from moesaic.evaluate.speed import resident_bytes
from moesaic.runtime.hf import load


def main() -> None:
    """Command line."""
    folder = Path(sys.argv[1])
    before = resident_bytes()
    start = time.perf_counter()
    model = load(folder)
    seconds = time.perf_counter() - start
    after = resident_bytes()
    with torch.inference_mode():
        model(torch.arange(8)[None])
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(
        f"load: {seconds:.2f} s, files {size / 1e9:.2f} GB, resident {before / 1e9:.2f} GB before, "
        f"{after / 1e9:.2f} GB after loading, {resident_bytes() / 1e9:.2f} GB after a forward pass"
    )


if __name__ == "__main__":
    main()
