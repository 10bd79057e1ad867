"""Run the tests of the native kernels and the fuzz target with a module that was built with sanitizers.

    python -m tests.native.sanitized build/sanitized

As a plugin of pytest (`-p tests.native.sanitized`) it puts that module in the place of the package's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.native.fuzz import load_module

VARIABLE = "MOESAIC_SANITIZED_MODULE"
FUZZ_SECONDS = 60
OPTIONS = {
    # Python and torch leave memory to the end of the process
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "OMP_WAIT_POLICY": "passive",
}

if VARIABLE in os.environ:
    sys.modules["moesaic.kernels._cpu"] = load_module(os.environ[VARIABLE])


def library(name: str) -> str:
    """Where the compiler keeps a library."""
    compiler = os.environ.get("CXX", "c++")
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> int:
    """Tests first, then random arguments; 0 when both found nothing."""
    module = next(Path(sys.argv[1]).glob("_cpu*.so")).resolve()
    # libstdc++ as well: the sanitizer wants to know it before it sees the first exception
    preload = " ".join(library(name) for name in ("libasan.so", "libstdc++.so.6"))
    environment = os.environ | OPTIONS | {"LD_PRELOAD": preload, VARIABLE: str(module)}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "tests.native.sanitized", "tests/kernels/test_cpu.py"]
    fuzz = [sys.executable, "-m", "tests.native.fuzz", "--seconds", str(FUZZ_SECONDS), "--module", str(module)]
    return max(subprocess.run(command, env=environment, check=False).returncode != 0 for command in (tests, fuzz))


if __name__ == "__main__":
    sys.exit(main())
