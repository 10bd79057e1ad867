"""Kernel backends, and the choice between them.

A backend is a module with `NAME`, `linear` and `experts`, the signatures of `kernels.reference`. On the CPU the native
kernels run where the package was built with them, else the reference backend. `MOESAIC_KERNELS` forces one by name.
"""

from __future__ import annotations

import os
from typing import Any, Protocol, cast

from torch import Tensor

from moesaic.errors import KernelUnavailable, MoesaicError
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
        prefer: name of the backend to use; default: the environment variable `MOESAIC_KERNELS`, else `cpu` where it can
            run, else `reference`.

    Raises:
        UnknownName: no backend of that name.
        KernelUnavailable: that backend cannot run here, or `MOESAIC_CPU_ISA` asks for an instruction set that is not
            there; says why.
    """
    return BACKENDS[_choose(device, prefer)[0]]


def describe(device: str = "cpu", prefer: str | None = None) -> dict[str, Any]:
    """What `select` chooses and why, for people and for the record; does not raise.

    Returns:
        `backend`: its name, None when `select` raises; `why`. With the native kernels also `instruction_set`, `threads`
        and `precision` (`kernels.cpu.PRECISIONS`).
    """
    try:
        name, why = _choose(device, prefer)
        if name != cpu.NAME:
            return {"backend": name, "why": why}
        details = {"instruction_set": cpu.isa(), "threads": cpu.threads(), "precision": cpu.precision_in_use()}
        return {"backend": name, "why": why, **details}
    except MoesaicError as error:
        return {"backend": None, "why": str(error)}


def _choose(device: str, prefer: str | None) -> tuple[str, str]:
    """The backend's name and the reason for it."""
    forced = prefer or os.environ.get("MOESAIC_KERNELS")
    if forced:
        look_up(forced, BACKENDS, kind="kernel backend")
        if forced == cpu.NAME:
            _check_cpu(device)
        return forced, "asked for by name" if prefer else f"MOESAIC_KERNELS={forced}"
    if device != "cpu":
        return reference.NAME, f"tensors are on {device}, and the native kernels run on CPUs"
    ready, reason = cpu.is_ready()
    return (cpu.NAME, "native kernels") if ready else (reference.NAME, reason)


# For torch.compile the choice is a constant, not something to trace.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_cpu(device: str) -> None:
    ready, reason = cpu.is_ready()
    if not ready:
        raise KernelUnavailable(f"kernel backend cpu: {reason}")
    if device != "cpu":
        raise KernelUnavailable(
            f"kernel backend cpu: tensors are on {device}; move them to the CPU or unset MOESAIC_KERNELS"
        )
