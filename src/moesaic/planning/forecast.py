"""What a run of `compress` will give and need, before it is begun. Every figure says from what it follows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moesaic.allocate import needs_costs
from moesaic.calibrate.files import load_stats
from moesaic.checkpoint.reader import Checkpoint
from moesaic.contents import folder_files
from moesaic.options import CompressOptions
from moesaic.packing.build import PackedBuild
from moesaic.pipeline import make_plan
from moesaic.planning.fit import Fit, RunningCost, fit_table, needed
from moesaic.planning.kv_cache import KvCache, kv_cache
from moesaic.planning.machine import disk_free, memory
from moesaic.planning.rehearsal import Rehearsal, rehearse
from moesaic.planning.sizes import KindChange, by_kind
from moesaic.progress import SILENT, Progress
from moesaic.records import BitPlan, CostTable

GB = 10**9
_SYNCS_A_UNIT = 2  # a file of tensors and the journal, see `packing.job`


@dataclass(frozen=True)
class Figure:
    """A number that says from what it follows.

    Attributes:
        value: the number, None where it is not known.
        unit: its unit.
        source: from what it follows.
    """

    value: float | None
    unit: str
    source: str


@dataclass(frozen=True)
class Wishes:
    """What to forecast beside the run itself.

    Attributes:
        context: tokens in the key-value cache; None for what the model was made for, 8192 at most.
        gpu_hour: price of an accelerator for an hour, None to leave the costs out.
        accelerator: its memory in GB.
        place: a folder on the disk that the output goes to.
        measure: make samples to predict time and memory.
        startup: seconds that it took to start and to open the checkpoint, which a run will take too.
    """

    context: int | None = None
    gpu_hour: float | None = None
    accelerator: float = 80
    place: Path = Path()
    measure: bool = True
    startup: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """All of it for one budget.

    Attributes:
        plan: the bit plan.
        kinds: bytes by kind of weight.
        files: bytes of every file of the folder.
        figures: named figures, sizes and needs of the run, in the order to show.
        context: tokens in the key-value cache.
        cache: the cache; None where it is not known.
        fits: where it fits.
        running: what it costs to run, None without a price.
        cost: predicted cost of the plan by the cost table, None without one.
    """

    plan: BitPlan
    kinds: list[KindChange]
    files: dict[str, int]
    figures: dict[str, Figure]
    context: int
    cache: KvCache | None
    fits: list[Fit]
    running: RunningCost | None
    cost: float | None

    @property
    def folder_bytes(self) -> int:
        """Bytes of the packed folder."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "plan": self.plan.to_json(),
            "kinds": [asdict(each) for each in self.kinds],
            "files": self.files,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "context": self.context,
            "kv_cache": None if self.cache is None else asdict(self.cache),
            "fits": [asdict(each) for each in self.fits],
            "running": None if self.running is None else asdict(self.running),
            "cost": self.cost,
        }


def forecast(
    checkpoint: Checkpoint,
    options: CompressOptions,
    wishes: Wishes | None = None,
    *,
    costs: CostTable | None = None,
    progress: Progress = SILENT,
) -> Forecast:
    """Foresee what `compress` with these options gives and needs.

    Args:
        checkpoint: the source. Scores are worked out as in `compress`; else only samples of its weights are read.
        options: of the run.
        wishes: what to forecast beside.
        costs: what experts cost at each width: for the allocators that need it, and to predict the plan's cost.
        progress: told how many experts are scored.

    Raises:
        MoesaicError: as `pipeline.make_plan`.
    """
    wishes = wishes or Wishes()
    start = time.perf_counter()
    found, plan = _plan(checkpoint, options, costs, progress)
    planning = time.perf_counter() - start
    build = PackedBuild(
        checkpoint, plan, options.make_quantizer(), other_bits=options.other_bits, head_bits=options.head_width
    )
    kinds, files = by_kind(build), folder_files(build, found, options)
    table = costs or (found if isinstance(found, CostTable) else None)
    figures = {**_sizes(build, kinds, files), "cost": _cost_figure(plan, table)}
    if wishes.measure:
        progress.start("measure", 1)
        figures |= needs(build, files, rehearse(build, wishes.place), planning, wishes)
        progress.advance(1)
    context = wishes.context or min(8192, getattr(checkpoint.config, "max_position_embeddings", None) or 8192)
    cache = kv_cache(checkpoint.config, context)
    held = cache.size if cache else 0
    before, after = (sum(getattr(each, when) for each in kinds) + held for when in ("before", "after"))
    return Forecast(
        plan=plan,
        kinds=kinds,
        files=files,
        figures=figures,
        context=context,
        cache=cache,
        fits=fit_table(before, after, memories()),
        running=_running(before, after, wishes),
        cost=figures["cost"].value,
    )


def _plan(
    checkpoint: Checkpoint, options: CompressOptions, costs: CostTable | None, progress: Progress
) -> tuple[Any, BitPlan]:
    """As `make_plan`, but with the costs given for an allocator that weighs them."""
    if options.plan is None and costs is not None:
        shapes = [layer.shape for layer in checkpoint.layers]
        named = options if options.allocator else replace(options, allocator="global")
        allocator = named.make_allocator()
        if needs_costs(allocator):
            plan = allocator(shapes, options.budget, costs)
            plan.check(shapes)
            return costs, plan
    # statistics are read where they are there, and not measured: a plan is to be quick
    found = options.stats is not None and options.stats.exists()
    stats = load_stats(options.stats) if found and options.stats is not None else None
    return make_plan(checkpoint, options, stats, progress=progress)


def memories() -> list[tuple[str, int]]:
    """The memories of this machine that a model could be in, with their free bytes."""
    import torch  # noqa: PLC0415

    found = [("this machine, free now", memory().available)]
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        found.append((f"GPU {number} here, {name}, free now", torch.cuda.mem_get_info(number)[0]))
    return found


def _sizes(build: PackedBuild, kinds: list[KindChange], files: Mapping[str, int]) -> dict[str, Figure]:
    shapes = [layer.shape for layer in build.checkpoint.layers]
    weights = sum(shape.experts * shape.expert_weights for shape in shapes)
    sources = {stored.path for stored in build.checkpoint.stored.values()}
    return {
        "code_bits": Figure(build.plan.reached_bits(shapes), "bits", "the plan: average over the experts' weights"),
        "stored_bpw": Figure(
            8 * build.expert_bytes() / weights, "bits", "the format: the same with scales, zero points and padding"
        ),
        "source_bytes": Figure(sum(path.stat().st_size for path in sources), "bytes", "the files of the checkpoint"),
        "folder_bytes": Figure(sum(files.values()), "bytes", "the format: every file, from shapes and widths"),
        "weights_before": Figure(sum(each.before for each in kinds), "bytes", "headers: the tensors that are used"),
        "weights_after": Figure(sum(each.after for each in kinds), "bytes", "the format: the tensors that are written"),
    }


def needs(
    build: PackedBuild, files: Mapping[str, int], measured: Rehearsal, planning: float, wishes: Wishes
) -> dict[str, Figure]:
    """Memory, disk and time that the run will need.

    Args:
        build: the packed model to be.
        files: its files.
        measured: on samples.
        planning: seconds that scores and plan took.
        wishes: its place and startup.
    """
    read = sum(each.stop - each.start for each in build.checkpoint.stored.values())
    written = sum(files.values())
    parts = {
        "start": wishes.startup,
        "score": planning,
        "read": read / measured.read_rate,
        "round": measured.round_seconds,
        "hash": (read + written) / measured.hash_rate,
        "write": written / measured.write_rate,
        "sync": _SYNCS_A_UNIT * len(build.units()) * measured.sync_seconds,
    }
    words = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in parts.items())
    return {
        "peak_memory": Figure(
            measured.peak_bytes, "bytes", f"this process, which made {measured.samples} samples, the largest among them"
        ),
        "memory_available": Figure(memory().available, "bytes", memory().source),
        "disk": Figure(written, "bytes", "the folder's size: it is written once, and renamed when complete"),
        "disk_free": Figure(disk_free(wishes.place), "bytes", f"the disk of {wishes.place.absolute()}"),
        "seconds": Figure(sum(parts.values()), "s", f"measured here on samples: {words}"),
        "read_rate": Figure(measured.read_rate, "bytes/s", "tensors of the checkpoint, not from the system's cache"),
        "write_rate": Figure(measured.write_rate, "bytes/s", "32 MB written and synchronised"),
        "sync": Figure(
            measured.sync_seconds, "s", "4 kB written and synchronised, which every part of the run does twice"
        ),
    }


def _cost_figure(plan: BitPlan, table: CostTable | None) -> Figure:
    if table is None:
        return Figure(None, "", "not known: no costs were given (--costs)")
    value = plan_cost(plan, table)
    source = (
        f"costs of {table.rule}, summed over experts at their widths"
        if value is not None
        else ("not known: the costs are raw errors, or lack a width of the plan, or it splits an expert")
    )
    return Figure(value, "", source)


def plan_cost(plan: BitPlan, table: CostTable) -> float | None:
    """Sum of the costs of all experts at their widths; None where the table does not say."""
    if table.raw:
        return None
    total = 0.0
    for name, bits in plan.layers.items():
        if bits.gate_up != bits.down or name not in table.layers or not set(bits.down) <= set(table.bits):
            return None
        total += sum(row[table.bits.index(width)] for row, width in zip(table.layers[name], bits.down, strict=True))
    return total


def _running(before: int, after: int, wishes: Wishes) -> RunningCost | None:
    if wishes.gpu_hour is None:
        return None
    capacity = int(wishes.accelerator * GB)
    return RunningCost(wishes.accelerator, wishes.gpu_hour, needed(before, capacity), needed(after, capacity))
