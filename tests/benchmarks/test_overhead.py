"""The benchmark of what Python costs, which reaches deeper into the package than others do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.kernels import cpu

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "overhead.py"


@pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")
def test_it_runs_and_prints_its_figures() -> None:
    """Calls and tokens are all there, as numbers above zero for calls; how large they are is not a matter of tests."""
    done = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    _, *lines = done.stdout.splitlines()
    calls, tokens = lines[:4], lines[4:]
    assert [float(line.split()[-2]) > 0 for line in calls] == [True] * 4
    assert [line.split()[3] for line in tokens] == ["mixtral:", "qwen3_moe:"]
