"""A checkpoint as the scoring rules see it: only the weights that a rule asks for are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.shards import StoredTensor, read_header, read_tensor
from moesaic.errors import CorruptFile, UsageError
from moesaic.families import MoeLayer
from moesaic.progress import SILENT, Progress
from moesaic.records import ExpertStats, ExpertWeights, LayerShape


@dataclass(frozen=True)
class InitialRouters:
    """The routers before training, from a checkpoint folder or a safetensors file."""

    path: Path
    checkpoint: Checkpoint | None
    tensors: dict[str, StoredTensor]

    @classmethod
    def open(cls, path: Path) -> InitialRouters:
        """Open a checkpoint folder, or a safetensors file that holds the router weights under their usual names.

        Raises:
            CorruptFile, NotACheckpoint: as for checkpoints.
        """
        if path.is_dir():
            return cls(path, Checkpoint.open(path), {})
        return cls(path, None, read_header(path))

    def router(self, final: Checkpoint, layer: MoeLayer) -> Tensor:
        """The router's weight before training. `[experts, hidden]` float32

        Raises:
            CorruptFile: it is not there, or has another shape than in the trained checkpoint.
        """
        if self.checkpoint is not None:
            router = self._from_checkpoint(self.checkpoint, layer)
        else:
            names = [layer.router, *(name for each in final.sources[layer.router].tensors.values() for name in each)]
            name = next((name for name in names if name in self.tensors), None)
            if name is None:
                raise CorruptFile(f"{self.path}: no initial router under the name {' or '.join(dict.fromkeys(names))}")
            router = read_tensor(self.tensors[name]).float()
        if router.shape != (layer.experts, layer.hidden):
            raise CorruptFile(
                f"{self.path}: the initial router of {layer.name} has shape {tuple(router.shape)}, the trained one "
                f"({layer.experts}, {layer.hidden}); they belong to different models"
            )
        return router

    def _from_checkpoint(self, checkpoint: Checkpoint, layer: MoeLayer) -> Tensor:
        for candidate in checkpoint.layers:
            if candidate.name == layer.name:
                return checkpoint.router(candidate)
        raise CorruptFile(f"{self.path}: has no expert layer {layer.name}; it belongs to another model")


@dataclass(frozen=True)
class CheckpointWeights:
    """Gives rules what they ask for (`scores.ModelWeights`).

    Attributes:
        checkpoint: the model.
        initial: its routers before training, where they are known.
        measured: what a calibration run learned of it, where there was one.
    """

    checkpoint: Checkpoint
    initial: InitialRouters | None = None
    measured: ExpertStats | None = None
    progress: Progress = SILENT  # told of every expert whose weights are read

    @property
    def experts(self) -> dict[str, int]:
        """Expert layers in order, with their number of experts."""
        return {layer.name: layer.experts for layer in self.checkpoint.layers}

    def router(self, layer: str) -> Tensor:
        """The router's weight. `[experts, hidden]` float32"""
        return self.checkpoint.router(self._layer(layer))

    def initial_router(self, layer: str) -> Tensor | None:
        """The router's weight before training, None when it is not known. `[experts, hidden]` float32"""
        return self.initial.router(self.checkpoint, self._layer(layer)) if self.initial else None

    def first_layer(self, layer: str, expert: int) -> Tensor:
        """W1 of one expert. `[intermediate, hidden]`, stored dtype"""
        self.progress.advance(1)
        return self.checkpoint.first_layer(self._layer(layer), expert)

    def expert(self, layer: str, expert: int) -> ExpertWeights:
        """All matrices of one expert, `[out, in]`, stored dtype."""
        return self.checkpoint.expert(self._layer(layer), expert)

    def shape(self, layer: str) -> LayerShape:
        """Sizes of a layer; nothing is read."""
        return self._layer(layer).shape

    @property
    def stats(self) -> ExpertStats:
        """What a calibration run learned of the model.

        Raises:
            UsageError: there was none.
        """
        if self.measured is None:
            raise UsageError(
                "the rule needs statistics of what the model does on text: give --calibration to measure them, or "
                "--stats with a file that an earlier run made"
            )
        return self.measured

    def _layer(self, name: str) -> MoeLayer:
        return next(layer for layer in self.checkpoint.layers if layer.name == name)
