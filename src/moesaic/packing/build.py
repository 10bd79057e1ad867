"""From a checkpoint and a plan to the tensors of a packed model, unit by unit: one expert in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

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
from moesaic.records import ENTRIES, STORED_WIDTH, BitPlan, ExpertWeights, read_json


class PackedBuild:
    """Knows which tensors the packed model will have, and makes them."""

    def __init__(self, checkpoint: Checkpoint, plan: BitPlan, quantizer: Quantizer, *, other_bits: int) -> None:
        """Prepare.

        Args:
            checkpoint: the source.
            plan: widths of all routed experts.
            quantizer: for experts and other linear layers alike.
            other_bits: width of the other linear layers; 16 leaves them as they are.
        """
        self.checkpoint = checkpoint
        self.plan = plan
        self.quantizer = quantizer
        self.other_bits = other_bits
        self.packed_layers = [layer for layer in checkpoint.layers if is_packed(plan.layers[layer.name])]
        names = checkpoint.linears if other_bits != STORED_WIDTH else []
        self.linears = {f"{name}.weight": name for name in names}

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

    def run(self, job: PackingJob, progress: Progress = SILENT) -> None:
        """Make every tensor that the job does not have yet. Progress is counted in weights."""
        sources = list(self.checkpoint.other_sources())
        layers = self.checkpoint.layers
        progress.start("pack", sum(map(_layer_weights, layers)) + sum(map(self._source_weights, sources)))
        for layer in layers:
            make = self._pack_layer if layer in self.packed_layers else self._keep_layer
            self._unit(job, layer.name, partial(make, job, layer, progress), _layer_weights(layer), progress)
        for source in sources:
            work = partial(self._make_other, job, source, progress)
            self._unit(job, source.targets[0], work, self._source_weights(source), progress)

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
        self, layer: MoeLayer, experts: Iterable[int]
    ) -> Iterator[tuple[int, ExpertWeights, list[Tensor]]]:
        """Some experts as `run` makes them, one after the other: number, weights, and packed data by entry."""
        widths = self.plan.layers[layer.name]
        for expert in experts:
            weights = self.checkpoint.expert(layer, expert)
            data = [self._entry_data(weights, entry, widths.entry(entry)[expert]) for entry in ENTRIES]
            yield expert, weights, data

    def make_linear(self, name: str) -> Tensor:
        """The weight of that name of a packed linear layer as `run` writes it; for a measurement beforehand."""
        return pack(self.quantizer(self.checkpoint.parameter(name), self.other_bits))

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
            "linears": {"bits": self.other_bits, "modules": sorted(self.linears.values())},
            "modules_to_not_convert": self._untouched(),
        }
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
        layout = MatrixLayout(rows, columns, self.other_bits, self.quantizer.group_size, self.quantizer.symmetric)
        return TensorSpec(linear_tensor(self.linears[name]), torch.uint8, (layout.total_bytes,))

    def _marked_linear(self) -> str | None:
        """The weight that carries the marker when no expert layer does."""
        return next(iter(self.linears), None) if not self.packed_layers else None

    def _source_weights(self, source: Source) -> int:
        return sum(math.prod(self.checkpoint.shapes[name]) for name in source.targets)

    def _pack_layer(self, job: PackingJob, layer: MoeLayer, progress: Progress) -> None:
        layouts = self._layouts(layer)
        biases: dict[str, list[Tensor]] = {}
        for expert, weights, made in self.make_experts(layer, range(layer.experts)):
            for (entry, layout), data in zip(layouts.items(), made, strict=True):
                job.write(entry_tensor(layer, entry, layout.widths[expert]), data, row=layout.place(expert))
            for role, bias in weights.biases().items():
                biases.setdefault(role, []).append(bias)
            progress.advance(layer.shape.expert_weights)
        for role, parts in biases.items():
            job.write(bias_tensor(layer, role), torch.stack(parts))
        job.write(marker_tensor(layer), torch.ones(1, dtype=torch.bool))

    def _entry_data(self, weights: ExpertWeights, entry: str, width: int) -> Tensor:
        """One expert's row of an entry's tensor: packed bytes, or the matrices as they were."""
        matrices = [matrix for role, matrix in weights.matrices().items() if (role == "down") == (entry == "down")]
        if width == STORED_WIDTH:
            return torch.cat(matrices)
        return torch.cat([pack(self.quantizer(matrix, width)) for matrix in matrices])

    def _keep_layer(self, job: PackingJob, layer: MoeLayer, progress: Progress) -> None:
        for name in layer.parameters():
            if layer.family is not None:
                job.write(name, self.checkpoint.parameter(name))
                continue
            for expert in range(layer.experts):
                job.write(name, self.checkpoint.expert_slice(name, expert), row=expert)
        progress.advance(_layer_weights(layer))

    def _make_other(self, job: PackingJob, source: Source, progress: Progress) -> None:
        if source.converter is None and source.targets[0] not in self.linears:
            for row, part in self.checkpoint.parts(source):
                job.write(source.targets[0], part, row=row)
                progress.advance(part.numel())
            return
        for name, tensor in self.checkpoint.parameters_of(source).items():
            if name in self.linears:
                job.write(linear_tensor(self.linears[name]), pack(self.quantizer(tensor, self.other_bits)))
                if name == self._marked_linear():
                    job.write(linear_marker(self.linears[name]), torch.ones(1, dtype=torch.bool))
            else:
                job.write(name, tensor)
            progress.advance(tensor.numel())


def _layer_weights(layer: MoeLayer) -> int:
    return layer.experts * layer.shape.expert_weights
