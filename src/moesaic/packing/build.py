"""From a checkpoint and a plan to the tensors of a packed model, unit by unit: one expert in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from moesaic.checkpoint.reader import Checkpoint, Source
from moesaic.checkpoint.writer import TensorSpec
from moesaic.families import MoeLayer
from moesaic.packing.job import PackingJob
from moesaic.packing.layout import FORMAT_VERSION, EntryLayout, MatrixLayout, pack
from moesaic.packing.names import (
    bias_tensor,
    entry_layouts,
    entry_tensor,
    is_packed,
    layer_specs,
    linear_marker,
    linear_tensor,
    marker_tensor,
)
from moesaic.progress import SILENT, Progress
from moesaic.quantize import Quantizer
from moesaic.records import ENTRIES, STORED_WIDTH, BitPlan, ExpertWeights, QuantizedWeight, read_json

_Parts = tuple[list[MoeLayer], list[Source]]
_Begin = Callable[[Mapping[str, str]], None]


class Guide(Protocol):
    """Rounds with the help of data, decoder layer by decoder layer in order. `calibrate.guide` has the real one."""

    @property
    def prefixes(self) -> Sequence[str]:
        """Beginnings of the names of everything in each decoder layer, in order."""

    def resume(self, done: int) -> None:
        """Go on after that many decoder layers that an earlier run finished."""

    def enter(self, number: int, linears: Mapping[str, str]) -> None:
        """Begin a decoder layer.

        Args:
            number: of the layer.
            linears: parameter -> name of the linear layers in it that will be rounded.
        """

    def linear(self, name: str, weight: Tensor, bits: int) -> QuantizedWeight:
        """Round the parameter `name` of the layer."""

    def route(self) -> None:
        """All linear layers of the decoder layer are rounded; experts and other tensors follow."""

    def expert(
        self, layer: MoeLayer, expert: int, weights: ExpertWeights, widths: Mapping[str, int]
    ) -> dict[str, QuantizedWeight]:
        """Round one expert; the matrices of width 16 are left out. Every expert of the layer, in order.

        Args:
            layer: the expert layer.
            expert: its number.
            weights: its matrices.
            widths: bits by entry.

        Returns:
            Role (`gate`, `up`, `down`) -> rounded matrix.
        """

    def tensor(self, name: str, value: Tensor) -> Tensor:
        """Any other tensor of the layer, as it shall be stored."""

    def leave(self) -> None:
        """The decoder layer is complete; what the next one needs is on the disk afterwards."""


class PackedBuild:
    """Knows which tensors the packed model will have, and makes them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: BitPlan,
        quantizer: Quantizer,
        *,
        other_bits: int,
        head_bits: int = STORED_WIDTH,
    ) -> None:
        """Prepare.

        Args:
            checkpoint: the source.
            plan: widths of all routed experts.
            quantizer: for experts and other linear layers alike.
            other_bits: width of the other linear layers; 16 leaves them as they are.
            head_bits: width of the output head, where it may be packed; 16 leaves it as it is.
        """
        self.checkpoint = checkpoint
        self.plan = plan
        self.quantizer = quantizer
        self.packed_layers = [layer for layer in checkpoint.layers if is_packed(plan.layers[layer.name])]
        self.other_bits, self.head_bits = other_bits, head_bits
        widths = dict.fromkeys(checkpoint.linears, other_bits)
        self.head = checkpoint.head if head_bits != STORED_WIDTH else None
        if self.head is not None:
            widths[self.head] = head_bits
        self.linear_bits = {name: bits for name, bits in widths.items() if bits != STORED_WIDTH}
        self.linears = {f"{name}.weight": name for name in self.linear_bits}

    def units(self) -> list[tuple[str, list[TensorSpec]]]:
        """Every unit of work: its name and the tensors it makes."""
        found = []
        for layer in self.checkpoint.layers:
            specs = self._layer_specs(layer) if layer in self.packed_layers else self._kept_specs(layer)
            found.append((layer.name, specs))
        for source in self.checkpoint.other_sources():
            specs = [self._other_spec(name) for name in source.targets]
            marked = self._marked_linear()
            if marked in source.targets and marked is not None:
                specs.append(TensorSpec(linear_marker(self.linears[marked]), torch.bool, (1,)))
            found.append((source.targets[0], specs))
        return found

    def expert_bytes(self) -> int:
        """Bytes on disk of all routed experts' weights, scales, zero points and padding included, biases not."""
        total = 0
        for layer in self.checkpoint.layers:
            if layer in self.packed_layers:
                specs = self._layer_specs(layer)
                total += sum(spec.size for spec in specs if len(spec.shape) > 1 and not spec.name.endswith("_bias"))
            else:
                total += sum(spec.size for spec in self._kept_specs(layer) if not spec.name.endswith("_bias"))
        return total

    def run(self, job: PackingJob, progress: Progress = SILENT, guide: Guide | None = None) -> None:
        """Make every tensor that the job does not have yet. Progress is counted in weights.

        Args:
            job: takes the tensors.
            progress: is told.
            guide: rounds with data; the decoder layers are then units of work, first to last.
        """
        layers, sources = list(self.checkpoint.layers), list(self.checkpoint.other_sources())
        progress.start("pack", sum(map(_layer_weights, layers)) + sum(map(self._source_weights, sources)))
        if guide is not None:
            layers, sources = self._run_guided(job, progress, guide)
        for layer in layers:
            make = self._pack_layer if layer in self.packed_layers else self._keep_layer
            self._unit(job, layer.name, partial(make, job, layer, progress), _layer_weights(layer), progress)
        for source in sources:
            work = partial(self._make_other, job, source, progress)
            self._unit(job, source.targets[0], work, self._source_weights(source), progress)

    def _run_guided(self, job: PackingJob, progress: Progress, guide: Guide) -> tuple[list[MoeLayer], list[Source]]:
        """Make the decoder layers with the guide; what is left is returned."""
        layers, sources = list(self.checkpoint.layers), list(self.checkpoint.other_sources())
        done = 0
        while done < len(guide.prefixes) and job.is_done(guide.prefixes[done]):
            done += 1
        guide.resume(done)
        for number, prefix in enumerate(guide.prefixes):
            inside = [layer for layer in layers if layer.name.startswith(prefix)]
            around = [source for source in sources if source.targets[0].startswith(prefix)]
            weights = sum(map(_layer_weights, inside)) + sum(map(self._source_weights, around))
            begin = partial(guide.enter, number)
            work = partial(self._make_decoder_layer, job, (inside, around), (guide, begin), progress)
            self._unit(job, prefix, work, weights, progress)
            layers = [layer for layer in layers if layer not in inside]
            sources = [source for source in sources if source not in around]
        return layers, sources

    def _make_decoder_layer(
        self, job: PackingJob, parts: _Parts, guided: tuple[Guide, _Begin], progress: Progress
    ) -> None:
        (inside, around), (guide, begin) = parts, guided
        linears = {n: self.linears[n] for source in around for n in source.targets if n in self.linears}
        begin(linears)
        for source in around:
            if set(source.targets) & set(linears):
                self._make_other(job, source, progress, guide)
        guide.route()
        for layer in inside:
            make = self._pack_layer if layer in self.packed_layers else self._keep_layer
            make(job, layer, progress, guide)
        for source in around:
            if not set(source.targets) & set(linears):
                self._make_other(job, source, progress, guide)
        guide.leave()

    def _unit(self, job: PackingJob, name: str, work: Callable[[], None], weights: int, progress: Progress) -> None:
        if job.is_done(name):
            progress.advance(weights)
            return
        digests: dict[str, str] = {}
        self.checkpoint.digests = digests
        work()
        self.checkpoint.digests = None
        job.finish(name, digests)

    def make_experts(
        self, layer: MoeLayer, experts: Iterable[int], guide: Guide | None = None
    ) -> Iterator[tuple[int, ExpertWeights, list[Tensor]]]:
        """Some experts as `run` makes them, one after the other: number, weights, and packed data by entry."""
        bits = self.plan.layers[layer.name]
        for expert in experts:
            weights = self.checkpoint.expert(layer, expert)
            widths = {entry: bits.entry(entry)[expert] for entry in ENTRIES}
            rounded = self._round(weights, widths) if guide is None else guide.expert(layer, expert, weights, widths)
            yield expert, weights, [_entry_data(weights, entry, rounded) for entry in ENTRIES]

    def make_linear(self, name: str) -> Tensor:
        """The weight of that name of a packed linear layer as `run` writes it; for a measurement beforehand."""
        return pack(self.quantizer(self.checkpoint.parameter(name), self.linear_bits[self.linears[name]]))

    def config(self) -> dict[str, Any]:
        """`config.json` of the packed model: the source's, with `quantization_config`."""
        experts = {
            layer.name: {e: " ".join(map(str, self.plan.layers[layer.name].entry(e))) for e in ENTRIES}
            for layer in self.packed_layers
        }
        quantization = {
            "quant_method": "moesaic",
            "format_version": FORMAT_VERSION,
            "group_size": self.quantizer.group_size,
            "symmetric": self.quantizer.symmetric,
            "experts": experts,
            "linears": {"bits": self.other_bits, "modules": sorted({*self.linear_bits} - {self.head})},
            "modules_to_not_convert": self._untouched(),
        }
        if self.head is not None:
            quantization["head"] = {"bits": self.head_bits, "modules": [self.head]}
        return {**read_json(self.checkpoint.folder / "config.json"), "quantization_config": quantization}

    def _untouched(self) -> list[str]:
        packed = {*self.linears.values()}
        return [
            name
            for name, module in self.checkpoint.model.named_modules()
            if hasattr(module, "weight")
            and name not in packed
            and not any(name.startswith(layer.name) for layer in self.packed_layers)
        ]

    def _layouts(self, layer: MoeLayer) -> Mapping[str, EntryLayout]:
        bits = self.plan.layers[layer.name]
        return entry_layouts(layer, bits, self.quantizer.group_size, self.quantizer.symmetric)

    def _layer_specs(self, layer: MoeLayer) -> list[TensorSpec]:
        names = layer.parameters()
        _, dtype = self.checkpoint.parameter_shape_and_dtype(names[0])
        bias_dtype = self.checkpoint.parameter_shape_and_dtype(names[-1])[1] if layer.has_bias else None
        return layer_specs(layer, dict(self._layouts(layer)), dtype, bias_dtype)

    def _kept_specs(self, layer: MoeLayer) -> list[TensorSpec]:
        found = []
        for name in layer.parameters():
            shape, dtype = self.checkpoint.parameter_shape_and_dtype(name)
            found.append(TensorSpec(name, dtype, shape))
        return found

    def _other_spec(self, name: str) -> TensorSpec:
        shape, dtype = self.checkpoint.parameter_shape_and_dtype(name)
        if name not in self.linears:
            return TensorSpec(name, dtype, shape)
        rows, columns = shape
        linear = self.linears[name]
        grid = (self.quantizer.group_size, self.quantizer.symmetric)
        layout = MatrixLayout(rows, columns, self.linear_bits[linear], *grid)
        return TensorSpec(linear_tensor(linear), torch.uint8, (layout.total_bytes,))

    def _marked_linear(self) -> str | None:
        """The weight that carries the marker when no expert layer does."""
        return next(iter(self.linears), None) if not self.packed_layers else None

    def _source_weights(self, source: Source) -> int:
        return sum(math.prod(self.checkpoint.shapes[name]) for name in source.targets)

    def _pack_layer(self, job: PackingJob, layer: MoeLayer, progress: Progress, guide: Guide | None = None) -> None:
        layouts = self._layouts(layer)
        biases: dict[str, list[Tensor]] = {}
        for expert, weights, made in self.make_experts(layer, range(layer.experts), guide):
            for (entry, layout), data in zip(layouts.items(), made, strict=True):
                job.write(entry_tensor(layer, entry, layout.widths[expert]), data, row=layout.place(expert))
            for role, bias in weights.biases().items():
                biases.setdefault(role, []).append(bias)
            progress.advance(layer.shape.expert_weights)
        for role, parts in biases.items():
            job.write(bias_tensor(layer, role), torch.stack(parts))
        job.write(marker_tensor(layer), torch.ones(1, dtype=torch.bool))

    def _round(self, weights: ExpertWeights, widths: Mapping[str, int]) -> dict[str, QuantizedWeight]:
        """An expert's matrices, rounded without data; those of width 16 are left out."""
        by_role = {role: widths["down" if role == "down" else "gate_up"] for role in weights.matrices()}
        return {
            role: self.quantizer(matrix, by_role[role])
            for role, matrix in weights.matrices().items()
            if by_role[role] != STORED_WIDTH
        }

    def _keep_layer(self, job: PackingJob, layer: MoeLayer, progress: Progress, guide: Guide | None = None) -> None:
        if guide is not None:  # it has to know what the experts give
            for expert in range(layer.experts):
                guide.expert(layer, expert, self.checkpoint.expert(layer, expert), dict.fromkeys(ENTRIES, STORED_WIDTH))
        for name in layer.parameters():
            if layer.family is not None:
                job.write(name, self.checkpoint.parameter(name))
                continue
            for expert in range(layer.experts):
                job.write(name, self.checkpoint.expert_slice(name, expert), row=expert)
        progress.advance(_layer_weights(layer))

    def _make_other(self, job: PackingJob, source: Source, progress: Progress, guide: Guide | None = None) -> None:
        if guide is None and source.converter is None and source.targets[0] not in self.linears:
            for row, part in self.checkpoint.parts(source):
                job.write(source.targets[0], part, row=row)
                progress.advance(part.numel())
            return
        for name, tensor in self.checkpoint.parameters_of(source).items():
            if name in self.linears:
                bits = self.linear_bits[self.linears[name]]
                rounded = guide.linear(name, tensor, bits) if guide else self.quantizer(tensor, bits)
                job.write(linear_tensor(self.linears[name]), pack(rounded))
                if name == self._marked_linear():
                    job.write(linear_marker(self.linears[name]), torch.ones(1, dtype=torch.bool))
            else:
                job.write(name, guide.tensor(name, tensor) if guide else tensor)
            progress.advance(tensor.numel())


def _entry_data(weights: ExpertWeights, entry: str, rounded: Mapping[str, QuantizedWeight]) -> Tensor:
    """One expert's row of an entry's tensor: packed bytes, or the matrices as they were."""
    matrices = {role: each for role, each in weights.matrices().items() if (role == "down") == (entry == "down")}
    return torch.cat([pack(rounded[role]) if role in rounded else each for role, each in matrices.items()])


def _layer_weights(layer: MoeLayer) -> int:
    return layer.experts * layer.shape.expert_weights
