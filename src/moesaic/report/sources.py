"""What a report is made from: packed folders' manifests, run records, calibration statistics, costs, scores.

Nothing here opens a model. Files are recognised by the format that they name, so that one option takes them all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from moesaic.costs import COSTS_FORMAT, CostTable
from moesaic.errors import CorruptFile, MoesaicError, NotACheckpoint, UsageError
from moesaic.packing import FORMAT_VERSION, MANIFEST
from moesaic.records import BitPlan, Scores

RECORDS_FORMAT = "moesaic-records/1"
STATS_INSIDE = "calibration_stats.safetensors"  # what `compress` keeps of a calibration run
RECORDS_INSIDE = "records*.json"  # files of a packed folder that `moesaic evaluate --save OUT/records.json` wrote
STATS_FORMAT = "moesaic-stats/1"

Setting = tuple[Any, Any, Any, int]


@dataclass(frozen=True)
class Measurement:
    """One run record as a report wants it.

    Attributes:
        name, value, unit, n, conditions: those of `RunRecord`.
        low, high: its 95 % interval, None where none was recorded.
    """

    name: str
    value: float
    unit: str
    n: int
    conditions: Mapping[str, Any]
    low: float | None = None
    high: float | None = None

    @property
    def setting(self) -> Setting:
        """Two values may be compared when this is the same: text, window, stride, number of samples."""
        known = self.conditions
        return known.get("text"), known.get("window"), known.get("stride"), self.n

    @property
    def layer(self) -> str | None:
        """The layer that it is of, None for the whole model."""
        layer = self.conditions.get("layer")
        return None if layer is None else str(layer)


@dataclass(frozen=True)
class Statistics:
    """A calibration statistics file (`docs/stats.md`) in numpy.

    Attributes:
        source: the file's name.
        tokens: layer name -> tokens that its router saw.
        arrays: layer name -> role -> array, first axis the experts.
        bits: widths that errors were measured at.
        fingerprint: what it was measured on.
    """

    source: str
    tokens: Mapping[str, int]
    arrays: Mapping[str, Mapping[str, np.ndarray]]
    bits: tuple[int, ...]
    fingerprint: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One model of a report.

    Attributes:
        label: what the page calls it; no two runs have the same.
        folder: as it was given; "" for a model that is known from records only.
        manifest: `moesaic.json`; empty for a model that is known from records only.
        measurements: everything that was measured of it.
    """

    label: str
    folder: str
    manifest: Mapping[str, Any]
    measurements: tuple[Measurement, ...] = ()

    @property
    def plan(self) -> BitPlan | None:
        """The bit plan, None for a model that is known from records only."""
        return BitPlan.from_json(self.manifest["plan"]) if self.manifest else None

    @property
    def uniform(self) -> bool:
        """Whether all experts have the same width."""
        plan = self.plan
        return plan is not None and len({w for bits in plan.layers.values() for w in (*bits.gate_up, *bits.down)}) == 1

    def experts(self) -> dict[str, int]:
        """Layer name -> number of experts."""
        plan = self.plan
        return {} if plan is None else {name: len(bits.gate_up) for name, bits in plan.layers.items()}

    def named(self, name: str) -> list[Measurement]:
        """The measurements of that name of the whole model."""
        return [each for each in self.measurements if each.name == name and each.layer is None]


@dataclass(frozen=True)
class Material:
    """All that a report is made from."""

    runs: tuple[Run, ...]
    statistics: tuple[Statistics, ...] = ()
    costs: tuple[CostTable, ...] = ()
    scores: tuple[Scores, ...] = ()


@dataclass
class _Loose:
    """What the files beside the folders hold."""

    records: list[Measurement] = field(default_factory=list)
    statistics: list[Statistics] = field(default_factory=list)
    costs: list[CostTable] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)


def read(folders: Iterable[Path], files: Iterable[Path] = ()) -> Material:
    """Read packed folders with the records inside them, and further files of records, statistics, costs or scores.

    Records belong to the folder whose name is their `model`. Records of a model that no folder has make a run of their
    own, such as the full-precision model.

    Raises:
        NotACheckpoint: a folder that `moesaic compress` did not write.
        CorruptFile: a file that is none of these, or damaged; it is named.
        UsageError: nothing given, or records that fit two folders.
    """
    loose = _Loose()
    runs = [_read_folder(folder, loose) for folder in folders]
    if not runs:
        raise UsageError("give at least one folder written by `moesaic compress`")
    for path in files:
        _read_file(path, loose)
    runs = _with_records(_with_labels(runs), loose.records)
    return Material(tuple(runs), tuple(loose.statistics), tuple(loose.costs), tuple(loose.scores))


def _read_folder(folder: Path, loose: _Loose) -> Run:
    path = folder / MANIFEST
    if not path.is_file():
        raise NotACheckpoint(
            f"{folder}: no {MANIFEST}; give a folder written by `moesaic compress`, and the records of another model "
            "(`moesaic evaluate … --save FILE`) with --records"
        )
    manifest = _json(path)
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise CorruptFile(f"{path}: format_version is {found!r}, this moesaic reads {FORMAT_VERSION}")
    run = Run(folder.resolve().name, str(folder), manifest)
    try:
        plan = run.plan
    except (MoesaicError, KeyError) as error:
        raise CorruptFile(f"{path}: its plan cannot be read ({error})") from None
    assert plan is not None
    if (folder / STATS_INSIDE).is_file():
        loose.statistics.append(read_statistics(folder / STATS_INSIDE))
    inside = sorted(folder.glob(RECORDS_INSIDE))
    return replace(run, measurements=_distinct([each for file in inside for each in _records(file, _json(file))]))


def _read_file(path: Path, loose: _Loose) -> None:
    if path.suffix == ".safetensors":
        loose.statistics.append(read_statistics(path))
        return
    data = _json(path)
    form = data.get("format") if isinstance(data, dict) else None
    try:
        if isinstance(data, list) or form == RECORDS_FORMAT:
            loose.records.extend(_records(path, data))
        elif form == COSTS_FORMAT:
            loose.costs.append(CostTable.from_json(data))
        elif form == "moesaic-scores/1":
            loose.scores.append(Scores.from_json(data))
        else:
            raise CorruptFile(f'its "format" is {form!r}; give records, scores, costs or statistics')
    except CorruptFile as error:
        raise CorruptFile(f"{path}: {error}") from None


def _records(path: Path, data: Any) -> list[Measurement]:
    """The records of a file: `{"format": …, "records": […]}`, or the list alone."""
    found = data if isinstance(data, list) else data.get("records") if isinstance(data, dict) else None
    if not isinstance(found, list):
        raise CorruptFile(f'{path}: no list of "records"')
    measured = []
    for place, record in enumerate(found):
        try:
            measured.append(_measurement(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"{path}: record {place} is not a run record ({error!r})") from None
    return [each for each in measured if math.isfinite(each.value)]


def _measurement(record: Mapping[str, Any]) -> Measurement:
    low, high = record.get("interval") or (None, None)
    return Measurement(
        name=str(record["name"]),
        value=float(record["value"]),
        unit=str(record["unit"]),
        n=int(record["n"]),
        conditions=dict(record["conditions"]),
        low=None if low is None else float(low),
        high=None if high is None else float(high),
    )


def read_statistics(path: Path) -> Statistics:
    """Read a calibration statistics file without torch.

    Raises:
        CorruptFile: not a statistics file, or one whose parts do not fit each other.
    """
    try:
        with safe_open(path, framework="np") as file:
            head = json.loads((file.metadata() or {}).get("moesaic", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CorruptFile(f"{path}: not a readable statistics file ({error})") from None
    if head.get("format") != STATS_FORMAT:
        raise CorruptFile(f"{path}: its format is {head.get('format')!r}, not {STATS_FORMAT!r}")
    arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in head["tokens"]}
    for name, array in tensors.items():
        layer, _, role = name.rpartition("/")
        arrays.setdefault(layer, {})[role] = array
    for layer, roles in arrays.items():
        if "count" not in roles or layer not in head["tokens"]:
            raise CorruptFile(f"{path}: {layer}: no counts of tokens; the file is damaged, write it again")
        odd = [role for role, array in roles.items() if array.shape[:1] != roles["count"].shape]
        if odd:
            raise CorruptFile(f"{path}: {layer}/{odd[0]} has shape {roles[odd[0]].shape}, not one row an expert")
        unsound = [role for role, array in roles.items() if not np.isfinite(array).all()]
        if unsound:
            raise CorruptFile(f"{path}: {layer}/{unsound[0]} holds NaN or infinity; write the file again")
    return Statistics(path.name, head["tokens"], arrays, tuple(head.get("bits", ())), head.get("fingerprint", {}))


def _with_labels(runs: list[Run]) -> list[Run]:
    """Labels that differ: the folder's name, with its parent's where two share one, with a number at the last."""
    names = [run.label for run in runs]
    longer = [
        run.label if names.count(run.label) == 1 else "/".join(Path(run.folder).resolve().parts[-2:]) for run in runs
    ]
    return [
        replace(run, label=label if longer.count(label) == 1 else f"{label} ({longer[:place].count(label) + 1})")
        for place, (run, label) in enumerate(zip(runs, longer, strict=True))
    ]


def _with_records(runs: list[Run], records: list[Measurement]) -> list[Run]:
    by_model: dict[str, list[Measurement]] = {}
    for record in records:
        by_model.setdefault(str(record.conditions.get("model", "?")), []).append(record)
    for model, measured in by_model.items():
        places = [i for i, run in enumerate(runs) if Path(run.folder).resolve().name == model and run.folder]
        if len(places) > 1:
            raise UsageError(f"two folders are called {model!r}, and the records given fit both; rename one of them")
        if places:
            run = runs[places[0]]
            runs[places[0]] = replace(run, measurements=_distinct([*run.measurements, *measured]))
        else:
            runs.append(Run(model, "", {}, _distinct(measured)))
    return runs


def _distinct(measured: list[Measurement]) -> tuple[Measurement, ...]:
    """Without repetitions: of two with the same name, layer, task and setting the later one counts."""
    latest = {(each.name, each.layer, each.conditions.get("task"), each.setting): each for each in measured}
    return tuple(latest.values())


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: not valid JSON ({error})") from None
