"""Command line: `python -m experiments.theory --work FOLDER [--save RECORD] [--quick]`, or `--figures`.

A run that was stopped goes on when the command is repeated: FOLDER keeps `finished.jsonl`, a line a case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from moesaic.json_files import read_json

from .cases import Case, cases
from .run import timed_case
from .summary import summary
from .tables import markdown

RECORD = Path("experiments/records/theory.json")
FIGURES = Path("docs/figures")


def finished(work: Path, wanted: list[Case], workers: int) -> list[dict[str, Any]]:
    """Every wanted case, those of earlier runs from the folder, the others run now."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "finished.jsonl"
    done = {record["key"]: record for record in read_lines(path)}
    missing = [case for case in wanted if case.key not in done]
    for number, record in enumerate(_run(missing, workers), 1):
        done[record["key"]] = record
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{number}/{len(missing)} {record['case']}: {record['seconds']:.0f} s", flush=True)
    return [done[case.key] for case in wanted]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished cases; a last line that a kill tore is cut off."""
    found: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        path.write_text("".join(json.dumps(record) + "\n" for record in found), encoding="utf-8")
    return found


def _run(missing: list[Case], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from map(timed_case, missing)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(timed_case, case) for case in missing]):
            yield future.result()


def main() -> None:
    """Run what is missing and save the record, or draw the figures of a saved one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps finished cases")
    parser.add_argument("--save", type=Path, help="where the record goes")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="four small cases")
    parser.add_argument("--figures", action="store_true", help="draw the figures of a saved record")
    parser.add_argument("--record", type=Path, default=RECORD, help="that the figures are drawn from")
    a = parser.parse_args()
    if a.figures:
        from .figures import draw  # noqa: PLC0415  (a run needs no matplotlib)

        draw(read_json(a.record), FIGURES)
        return
    if a.work is None:
        parser.error("give --work FOLDER (or --figures)")
    found = summary(finished(a.work, list(cases(quick=a.quick)), a.workers))
    (a.work / "tables.md").write_text(markdown(found), encoding="utf-8")
    if a.save:
        a.save.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
