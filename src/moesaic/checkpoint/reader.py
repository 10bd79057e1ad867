"""A Hugging Face checkpoint, opened lazily: which stored tensors make which parameter, and one expert at a time.

The way from names in files to parameters of the model is transformers' own conversion mapping. Its operations are run
here on a single expert's tensors, which gives the expert as transformers' fused module would hold it; from there it is
split into canonical `[out, in]` matrices. So no list of tensor names per architecture is kept here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from moesaic.checkpoint.shards import StoredTensor, read_headers, read_rows, read_tensor
from moesaic.errors import CorruptFile, NotACheckpoint, UnsupportedModel
from moesaic.families import MoeLayer, find_moe_layers
from moesaic.families.skeleton import build_skeleton, head_name, linear_names, load_config, refuse_quantized
from moesaic.records import ExpertWeights

PART_BYTES = 64 << 20  # how much of a tensor is read at a time where it can be cut


@dataclass(frozen=True)
class Source:
    """The stored tensors that one or more parameters are made of.

    Attributes:
        targets: the parameters.
        converter: transformers' operations between the two, None where the tensor is used as it is.
        tensors: source pattern -> names of stored tensors, in natural order (one per expert in merged lists).
    """

    targets: tuple[str, ...]
    converter: WeightConverter | None
    tensors: dict[str, list[str]]


@dataclass
class Checkpoint:
    """An opened checkpoint. Make one with `Checkpoint.open`.

    Attributes:
        folder: where it lies.
        config: its transformers configuration.
        model: the architecture on the meta device.
        layers: its routed-expert layers.
        linears: names of its other linear layers that may be packed, the output head apart.
        head: name of the output head, None where it may not be packed: it shares its weight with the embedding.
        stored: stored tensors by name.
        sources: parameter -> what it is made of.
        shapes: shape of every parameter and buffer of the model.
        floating: whether it holds floating-point numbers.
        bytes_read: tensor bytes read so far.
        digests: when set to a dictionary, the SHA-256 of everything read, by tensor (and expert).
    """

    folder: Path
    config: PreTrainedConfig
    model: PreTrainedModel
    layers: list[MoeLayer]
    linears: list[str]
    head: str | None
    stored: dict[str, StoredTensor]
    sources: dict[str, Source]
    shapes: dict[str, tuple[int, ...]]
    floating: dict[str, bool]
    bytes_read: int = 0
    digests: dict[str, str] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
        """Open a checkpoint folder: reads its configuration and the headers of its files, no weights.

        Raises:
            NotACheckpoint: not a model folder, or no safetensors in it.
            UnsupportedModel: no MoE layers, an unknown architecture, or already quantized weights.
            CorruptFile: files missing, truncated or inconsistent; tensors missing or of the wrong shape.
        """
        if not folder.is_dir():
            raise NotACheckpoint(f"{folder}: no such folder; give a Hugging Face model folder or a hub id")
        config = load_config(folder, trust_remote_code=trust_remote_code)
        refuse_quantized(config, folder)
        stored = read_headers(folder)
        model = build_skeleton(config, trust_remote_code=trust_remote_code)
        layers = find_moe_layers(model, config.model_type)
        linears = linear_names(model, [layer.name for layer in layers], [layer.router for layer in layers])
        sources = _map_sources(model, stored)
        parameters = model.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        floating = {name: tensor.is_floating_point() for name, tensor in parameters.items()}
        head = head_name(model)
        checkpoint = cls(folder, config, model, layers, linears, head, stored, sources, shapes, floating)
        checkpoint._check_complete()
        checkpoint._check_shapes()
        return checkpoint

    @property
    def name(self) -> str:
        """A short name for people: the folder's own, or the hub id for a folder of the hub's cache."""
        for part in self.folder.parts:
            if part.startswith("models--"):
                return part.removeprefix("models--").replace("--", "/")
        return self.folder.resolve().name

    def router(self, layer: MoeLayer) -> Tensor:
        """The router's weight. `[experts, hidden]` float32"""
        return self.parameter(layer.router).float()

    def expert(self, layer: MoeLayer, expert: int) -> ExpertWeights:
        """One expert's matrices, in canonical orientation and stored dtype."""
        if layer.family is not None:
            path = f"{layer.name}.{layer.family.expert.format(expert)}"
            return ExpertWeights(
                gate=None,
                up=self.parameter(f"{path}.{layer.family.up}"),
                down=self.parameter(f"{path}.{layer.family.down}"),
            )
        fused = {name.rpartition(".")[2]: self.expert_slice(name, expert) for name in layer.fused_parameters}
        return split_fused(layer, fused)

    def first_layer(self, layer: MoeLayer, expert: int) -> Tensor:
        """W1 of one expert (gate where there is one, else up), reading no more than the file's form forces.

        `[intermediate, hidden]` in the stored dtype.
        """
        if layer.family is not None:
            return self.parameter(f"{layer.name}.{layer.family.expert.format(expert)}.{layer.family.up}")
        name = layer.fused_parameters[0]
        source = self.sources[name]
        if layer.has_gate and source.converter is not None and len(source.tensors) == 2:
            gates = next(iter(source.tensors.values()))  # per-expert tensors: the gate is the first pattern
            if self.stored[gates[expert]].shape == (layer.intermediate, layer.hidden):
                return self._read(gates[expert])
        return _split_first(layer, self.expert_slice(name, expert))[-1 if not layer.has_gate else 0]

    def expert_slice(self, name: str, expert: int) -> Tensor:
        """One expert of a fused parameter, as the module holds it (first dimension dropped)."""
        source = self.sources[name]
        if source.converter is None:
            (only,) = next(iter(source.tensors.values()))
            return self._read(only, row=expert)
        experts = self.shapes[name][0]
        parts = {}
        for pattern, names in source.tensors.items():
            one = self._read(names[expert]) if len(names) == experts else self._read(names[0], row=expert)[None]
            parts[pattern] = one
        return self._convert(name, source, {pattern: [part] for pattern, part in parts.items()})[name][0]

    def parameter(self, name: str) -> Tensor:
        """A whole parameter or buffer of the model, in the stored dtype."""
        return self.parameters_of(self.sources[name])[name]

    def parameters_of(self, source: Source) -> dict[str, Tensor]:
        """All parameters that are made of one source."""
        read = {pattern: [self._read(name) for name in names] for pattern, names in source.tensors.items()}
        if source.converter is None:
            ((tensor,),) = read.values()
            return {source.targets[0]: tensor}
        return self._convert(source.targets[0], source, read)

    def parts(self, source: Source) -> Iterator[tuple[int | None, Tensor]]:
        """A parameter that is one stored tensor, in runs of rows of bounded size: `(first row, rows)`.

        Scalars and tensors without rows come whole, with None for the row.
        """
        ((name,),) = source.tensors.values()
        stored = self.stored[name]
        if not stored.shape or not stored.shape[0]:
            yield None, self._read(name)
            return
        digest = hashlib.sha256()
        step = max(1, PART_BYTES // max(1, (stored.stop - stored.start) // stored.shape[0]))
        for row in range(0, stored.shape[0], step):
            tensor = read_rows(stored, row, min(row + step, stored.shape[0]))
            self.bytes_read += tensor.numel() * tensor.element_size()
            digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
            yield row, tensor
        if self.digests is not None:
            self.digests[name] = digest.hexdigest()

    def other_sources(self) -> Iterator[Source]:
        """The sources of everything that is not a routed expert, each once, in the order of the model."""
        routed = {name for layer in self.layers for name in layer.parameters()}
        seen: set[tuple[str, ...]] = set()
        for name in self.shapes:
            source = self.sources.get(name)
            if source is not None and name not in routed and source.targets not in seen:
                seen.add(source.targets)
                yield source

    def parameter_shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and stored dtype of a parameter, from headers."""
        source = self.sources[name]
        first = self.stored[next(iter(source.tensors.values()))[0]]
        return self.shapes[name], first.dtype

    def _read(self, name: str, row: int | None = None) -> Tensor:
        tensor = read_tensor(self.stored[name], row)
        self.bytes_read += tensor.numel() * tensor.element_size()
        if self.digests is not None:
            raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            key = name if row is None else f"{name}[{row}]"
            self.digests[key] = hashlib.sha256(raw.data).hexdigest()
        return tensor

    def _convert(self, name: str, source: Source, parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        converter = deepcopy(source.converter)
        assert converter is not None
        for pattern, tensors in parts.items():
            for tensor in tensors:
                converter.add_tensor(name, name, pattern, tensor)
        made = converter.convert(name, model=self.model, config=self.config)
        return {target: value[0] if isinstance(value, list) else value for target, value in made.items()}

    def _check_complete(self) -> None:
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        optional = [re.compile(pattern) for pattern in self.model._keys_to_ignore_on_load_missing or ()]
        missing = [
            name
            for name in self.shapes
            if name not in self.sources and name not in tied and not any(each.search(name) for each in optional)
        ]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise CorruptFile(
                f"{self.folder}: no tensor for the parameter {missing[0]}{more}; the checkpoint is incomplete or not a "
                f"{self.config.model_type}"
            )

    def _check_shapes(self) -> None:
        """Make sure from the headers that every tensor has the shape that the architecture asks for."""
        experts = {name: layer.experts for layer in self.layers for name in layer.fused_parameters}
        for name, source in self.sources.items():
            for names in source.tensors.values():
                self._check_alike([self.stored[each] for each in names])
                self._check_float(name, self.stored[names[0]])
            found = self._made_shape(name, source, experts.get(name))
            if found != self.shapes[name]:
                first = self.stored[next(iter(source.tensors.values()))[0]]
                raise CorruptFile(
                    f"{first.path}: tensor {first.name} has shape {first.shape}, which makes {name} {found}, but "
                    f"config.json asks for {self.shapes[name]}; config.json and weights do not belong together"
                )

    def _check_float(self, name: str, stored: StoredTensor) -> None:
        if self.floating[name] and not stored.dtype.is_floating_point:
            raise CorruptFile(
                f"{stored.path}: tensor {stored.name} has dtype {stored.dtype}, which is not one of weights; give the "
                "bfloat16, float16 or float32 checkpoint"
            )

    def _check_alike(self, tensors: list[StoredTensor]) -> None:
        first = tensors[0]
        for other in tensors:
            if other.shape != first.shape or other.dtype != first.dtype:
                raise CorruptFile(
                    f"{other.path}: tensor {other.name} has shape {other.shape} and dtype {other.dtype}, but "
                    f"{first.name} has {first.shape} and {first.dtype}; download the file again"
                )

    def _made_shape(self, name: str, source: Source, experts: int | None) -> tuple[int, ...]:
        """The shape that a source's tensors combine to, worked out without reading them.

        Args:
            name: the parameter.
            source: what it is made of.
            experts: number of experts if it is a routed experts' parameter: then one stands for all.
        """
        if source.converter is None:
            ((only,),) = source.tensors.values()
            return self.stored[only].shape
        counts = {len(names) for names in source.tensors.values()}
        merged = experts is not None and counts != {1}
        if merged and counts != {experts}:
            some = next(iter(source.tensors.values()))[0]
            raise CorruptFile(
                f"{self.folder}: {sorted(counts)} tensors like {some}, config.json says {experts} experts"
            )
        metas = {
            pattern: [_meta(self.stored[each]) for each in (names[:1] if merged else names)]
            for pattern, names in source.tensors.items()
        }
        try:
            shape = tuple(self._convert(name, source, metas)[name].shape)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UnsupportedModel(f"{self.folder}: the tensors of {name} do not combine: {reason}") from None
        return (experts, *shape[1:]) if merged and experts is not None else shape


def _meta(stored: StoredTensor) -> Tensor:
    return torch.empty(stored.shape, dtype=stored.dtype, device="meta")


def split_fused(layer: MoeLayer, fused: dict[str, Tensor]) -> ExpertWeights:
    """Split one expert of the fused parameters into canonical matrices.

    Args:
        layer: says how the module lays them out.
        fused: by short parameter name: `gate_up_proj` or `up_proj`, `down_proj` and, with biases, `…_bias`.
    """
    first_name = "gate_up_proj" if layer.has_gate else "up_proj"
    parts = _split_first(layer, fused[first_name])
    biases = _split_rows(layer, fused[f"{first_name}_bias"]) if layer.has_bias else (None, None)
    down = fused["down_proj"]
    return ExpertWeights(
        gate=parts[0] if layer.has_gate else None,
        up=parts[-1],
        down=down.T.contiguous() if layer.transposed else down,
        gate_bias=biases[0] if layer.has_gate else None,
        up_bias=biases[-1],
        down_bias=fused["down_proj_bias"] if layer.has_bias else None,
    )


def _split_first(layer: MoeLayer, first: Tensor) -> tuple[Tensor, ...]:
    return _split_rows(layer, first.T if layer.transposed else first)


def _split_rows(layer: MoeLayer, rows: Tensor) -> tuple[Tensor, ...]:
    """Gate and up from `[2 * intermediate, …]`; up alone without a gate."""
    if not layer.has_gate:
        return (rows.contiguous(),)
    if layer.concatenated:
        return rows[: layer.intermediate].contiguous(), rows[layer.intermediate :].contiguous()
    return rows[0::2].contiguous(), rows[1::2].contiguous()


def _map_sources(model: PreTrainedModel, stored: dict[str, StoredTensor]) -> dict[str, Source]:
    """Follow transformers' conversion mapping from every stored tensor to the parameters it goes into."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    parameters = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    found: dict[str, Source] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if target not in parameters and name in parameters:
            target, pattern = name, None
        if target not in parameters or target in tied:
            continue  # rotary tables, heads for other tasks, … which the model has no use for
        if pattern is None:
            found[target] = Source((target,), None, {name: [name]})
        else:
            source = found.setdefault(target, Source((target,), by_pattern[pattern], {}))
            source.tensors.setdefault(pattern, []).append(name)
    return _with_all_targets(model, found, stored)


def _with_all_targets(
    model: PreTrainedModel, found: dict[str, Source], stored: dict[str, StoredTensor]
) -> dict[str, Source]:
    """Register a source under each of its parameters where transformers splits a tensor into several."""
    complete: dict[str, Source] = {}
    for target, source in found.items():
        if source.converter is None or len(source.converter.target_patterns) == 1:
            complete[target] = source
            continue
        converter = deepcopy(source.converter)
        for pattern, names in source.tensors.items():
            for name in names:
                converter.add_tensor(target, name, pattern, _meta(stored[name]))
        targets = tuple(converter.convert(target, model=model, config=model.config))
        for each in targets:
            complete[each] = Source(targets, source.converter, source.tensors)
    return complete
