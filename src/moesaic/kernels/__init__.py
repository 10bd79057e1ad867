"""Kernel backends, and the choice between them.

A backend is a module with `NAME`, `linear` and `experts`, the signatures of `kernels.reference`.
`MOESAIC_KERNELS` forces one by name.
"""

from __future__ import annotations

import os
from typing import Protocol, cast

from torch import Tensor

from moesaic.errors import KernelUnavailable
from moesaic.kernels import cpu, reference
from moesaic.kernels.layer import ExpertLayer
from moesaic.packing.layout import MatrixLayout
from moesaic.registry import look_up


class Backend(Protocol):
    """What every backend offers; `kernels.reference` documents the two functions."""

    NAME: str

    def linear(self, x: Tensor, blob: Tensor, layout: MatrixLayout, bias: Tensor | None = None) -> Tensor:
        """`x W^T + b` with a packed `W`."""

    def experts(self, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor, layer: ExpertLayer) -> Tensor:
        """A whole expert layer."""


BACKENDS: dict[str, Backend] = {
    "reference": cast(Backend, reference),
    "cpu": cast(Backend, cpu),
}


def select(device: str = "cpu", prefer: str | None = None) -> Backend:
    """The backend that runs on tensors of `device`.

    Args:
        device: torch device type of the activations.
        prefer: name of the backend to use; default: the environment variable `MOESAIC_KERNELS`, else the best one.

    Raises:
        UnknownName: no backend of that name.
        KernelUnavailable: that backend cannot run here; says why.
    """
    backend = look_up(prefer or os.environ.get("MOESAIC_KERNELS") or "reference", BACKENDS, kind="kernel backend")
    if backend is BACKENDS["cpu"]:
        ready, reason = cpu.available()
        if not ready or device != "cpu":
            raise KernelUnavailable(f"kernel backend cpu on {device}: {reason}")
    return backend
