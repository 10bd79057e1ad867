"""How near does `moesaic plan` come to what `moesaic compress` then takes: folder size, peak memory, time?

    python -m benchmarks.forecast --work FOLDER

Writes two checkpoints of random weights into FOLDER once, beside the demo model: one with many small experts, one with
a few as large as half of Mixtral-8x7B's. For each it runs the two real commands in processes of their own and prints
what was foreseen next to what came. Exit code 1 when a size is more than 1 % off, or a peak of memory more than 20 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from transformers import MixtralConfig

from benchmarks.compress import run
from benchmarks.synthetic import write_checkpoint

DEMO = Path(__file__).parents[1] / "models" / "demo"
MADE = {
    "many small experts": MixtralConfig(
        hidden_size=512, intermediate_size=256, num_hidden_layers=4, num_local_experts=64, num_experts_per_tok=8
    ),
    "few large experts": MixtralConfig(hidden_size=2048, intermediate_size=7168, num_hidden_layers=2),
}
OPTIONS = ["--bits", "2.5"]
# the system's account of a child's memory includes that of the process that started it, hence asked from inside
MOESAIC = """
import atexit, sys
from moesaic.cli import main
from moesaic.planning.machine import peak_memory
atexit.register(lambda: print("peak", peak_memory(), file=sys.stderr))
main()
"""
SIZE, MEMORY = 0.01, 0.20  # how far a forecast may be off


def models(work: Path) -> dict[str, Path]:
    """The checkpoints by name, those of random weights written where they are not there."""
    found = {"demo": DEMO}
    for name, config in MADE.items():
        found[name] = work / name.replace(" ", "-")
        if not (found[name] / "config.json").exists():
            write_checkpoint(found[name], config)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    moesaic = [sys.executable, "-c", MOESAIC]
    failed = False
    for name, source in models(a.work).items():
        options = [str(source), *OPTIONS, "--threads", str(a.threads), "--json"]
        foreseen = json.loads(run([*moesaic, "plan", *options]).output.splitlines()[0])["figures"]
        out = a.work / "packed"
        shutil.rmtree(out, ignore_errors=True)
        done = run([*moesaic, "compress", *options, "-o", str(out)])
        came = {
            "folder_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
            "peak_memory": int(done.output.rpartition("peak ")[2]),
            "seconds": done.seconds,
        }
        for what, value in came.items():
            told = foreseen[what]["value"]
            off = told / value - 1
            print(f"{name}: {what} foreseen {told:.6g}, came {value:.6g}, {100 * off:+.2f} %")
            failed |= abs(off) > {"folder_bytes": SIZE, "peak_memory": MEMORY}.get(what, float("inf"))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
