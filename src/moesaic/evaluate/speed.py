"""Speed and memory of a model, measured in a process of its own.

A process that has loaded two models says nothing about the memory of one. So `measure` starts this file as a program,
which loads one folder, generates, and prints what it saw as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from moesaic.errors import MoesaicError


@dataclass(frozen=True)
class Speed:
    """What one process saw.

    Attributes:
        prefill_tokens_per_second: tokens of the prompt, over the time of its forward pass.
        decode_tokens_per_second: tokens generated one by one with a key-value cache.
        load_seconds: time to open the folder.
        resident_before_bytes: memory of the process with the libraries imported, before loading.
        resident_loaded_bytes: after loading.
        peak_memory_bytes: the most at any time, generation included.
        backend: the kernel backend that ran.
    """

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    load_seconds: float
    resident_before_bytes: int
    resident_loaded_bytes: int
    peak_memory_bytes: int
    backend: str


def measure_speed(
    folder: Path,
    prompt: list[int],
    *,
    new_tokens: int = 32,
    threads: int | None = None,
    pruning: bool = True,
    trust_remote_code: bool = False,
) -> Speed:
    """Load a folder in a new process, read the prompt, generate greedily.

    Args:
        folder: packed or not.
        prompt: token ids.
        new_tokens: how many tokens to generate.
        threads: torch threads, None for torch's choice.
        pruning: let the folder's skipping policy, if any, decide which experts run.
        trust_remote_code: as for `load`.

    Raises:
        MoesaicError: the process failed; its last words.
    """
    command = [sys.executable, "-m", "moesaic.evaluate.speed", str(folder), "--new-tokens", str(new_tokens)]
    if threads is not None:
        command += ["--threads", str(threads)]
    if not pruning:
        command += ["--no-pruning"]
    if trust_remote_code:
        command += ["--trust-remote-code"]
    done = subprocess.run(command, input=json.dumps(prompt), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise MoesaicError(f"{folder}: measuring its speed failed: {words[-1] if words else done.returncode}")
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-pruning", action="store_true")
    parser.add_argument("--trust-remote-code", action="store_true")
    arguments = parser.parse_args()
    prompt = json.loads(sys.stdin.read())

    import torch  # noqa: PLC0415  (after the arguments, so that a wrong call is answered at once)
    import transformers  # noqa: PLC0415

    from moesaic.kernels import select  # noqa: PLC0415
    from moesaic.runtime.hf import open_any  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    before = resident_bytes()
    start = time.perf_counter()
    model = open_any(arguments.folder, trust_remote_code=arguments.trust_remote_code, pruning=not arguments.no_pruning)
    loaded = time.perf_counter() - start
    resident = resident_bytes()
    tokens = torch.tensor([prompt])
    length = {"max_new_tokens": arguments.new_tokens, "min_new_tokens": arguments.new_tokens, "do_sample": False}
    with torch.inference_mode():
        _generate_timed(model, tokens, {**length, "max_new_tokens": 2, "min_new_tokens": 2})  # warm up
        prefill = _generate_timed(model, tokens, {**length, "max_new_tokens": 1, "min_new_tokens": 1})
        whole = _generate_timed(model, tokens, length)
    speed = Speed(
        prefill_tokens_per_second=len(prompt) / prefill,
        decode_tokens_per_second=(arguments.new_tokens - 1) / max(whole - prefill, 1e-9),
        load_seconds=loaded,
        resident_before_bytes=before,
        resident_loaded_bytes=resident,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        backend=select("cpu").NAME,
    )
    print(json.dumps(speed.__dict__))


def _generate_timed(model, tokens, length) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    model.generate(tokens, **length)
    return time.perf_counter() - start


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, mapped files included."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    _main()
