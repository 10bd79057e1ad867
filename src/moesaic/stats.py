"""What a calibration run learned of every expert. File form: `docs/stats.md`, read and written by `calibrate.files`.

It has a file of its own for its length; import it from `moesaic.records`, where the other nouns are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

RARE_TOKENS = 32  # an expert that fewer calibration tokens reached is named in reports


@dataclass(frozen=True)
class LayerStats:
    """Statistics of one expert layer with `E` experts, measured at `W` widths. All float64 but `count`.

    Attributes:
        tokens: calibration tokens that the layer's router saw.
        count: `[E]` int64, tokens routed to each expert.
        mass_before: `[E]`, routing weight given to each expert, before the weights of the chosen experts were
            normalised (the softmax of the router's logits).
        mass: `[E]`, routing weight as it was applied.
        gate_up_moment: `[E, hidden]`, mean square of each input of the gate and up matrices over the expert's tokens,
            shrunk toward the layer's as `calibrate` says.
        down_moment: `[E, intermediate]`, the same for the input of the down matrix.
        weight_error: `[E, W, 2]`, squared Frobenius norm of what rounding changes in the gate and up matrices, and in
            the down matrix; None where no rule asked for it, as with the ones below.
        output_error: `[E, W]`, Frobenius norm of the change of the layer's output over all tokens when that expert
            alone is rounded to that width (PMQ's epsilon).
        fisher: `[E, W]`, sum over tokens and channels of (gradient of the loss x change of the output)^2 (GEMQ).
        output_error_entries, fisher_entries: `[E, W, 2]`, the same with the gate and up matrices, or the down matrix
            alone rounded.
    """

    tokens: int
    count: Tensor
    mass_before: Tensor
    mass: Tensor
    gate_up_moment: Tensor
    down_moment: Tensor
    weight_error: Tensor | None = None
    output_error: Tensor | None = None
    fisher: Tensor | None = None
    output_error_entries: Tensor | None = None
    fisher_entries: Tensor | None = None

    @property
    def experts(self) -> int:
        """Number of routed experts."""
        return int(self.count.shape[0])

    def rare(self) -> list[int]:
        """The experts that fewer than `RARE_TOKENS` tokens reached."""
        return [expert for expert, count in enumerate(self.count.tolist()) if count < RARE_TOKENS]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by field name."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "tokens"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True)
class ExpertStats:
    """Statistics of all expert layers of a model, with what they were measured on.

    Attributes:
        layers: layer name -> its statistics.
        bits: the widths that errors were measured at, ascending; empty where none were.
        quantizer: the rounding that the errors are of, such as `rtn group 64 symmetric`; "" where none were measured.
        fingerprint: what makes the statistics what they are: model, text, number and length of sequences, seed, ...
    """

    layers: Mapping[str, LayerStats]
    bits: tuple[int, ...] = ()
    quantizer: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
