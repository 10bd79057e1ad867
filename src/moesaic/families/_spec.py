"""What moesaic has to know of an architecture's expert layers."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.records import LayerShape


@dataclass(frozen=True)
class ModuleListFamily:
    """An architecture whose experts are modules of their own, outside transformers' fused-experts interface.

    Attributes:
        model_type: `model_type` of its configuration.
        experts_class: class name of the module that holds the experts.
        expert: name of expert number `{}` inside that module.
        up, down: the expert's first and second linear layer.
        activation: attribute of the expert that is the activation between them.
        router: the router's weight, from the parent of the experts module.
        one_hot: the module is called with a one-hot expert mask `[tokens, 1, experts]` and weights `[tokens, 1]`
            in place of indices and weights `[tokens, k]`.
    """

    model_type: str
    experts_class: str
    expert: str
    up: str
    down: str
    activation: str
    router: str
    one_hot: bool


@dataclass(frozen=True)
class MoeLayer:
    """One expert layer as found in the architecture.

    Attributes:
        name: path of the experts module.
        experts: number of routed experts.
        hidden, intermediate: width of the model and of one expert.
        has_gate: experts are `down(act(gate x) * up x)` rather than `down(act(up x))`.
        has_bias: experts have biases.
        transposed: the fused parameters are `[experts, in, out]`.
        concatenated: gate and up are halves of the fused parameter; else their rows alternate.
        router: name of the router's weight, `[experts, hidden]`.
        family: set for architectures with experts in modules of their own.
    """

    name: str
    experts: int
    hidden: int
    intermediate: int
    has_gate: bool
    has_bias: bool
    transposed: bool
    concatenated: bool
    router: str
    family: ModuleListFamily | None = None

    @property
    def shape(self) -> LayerShape:
        """What an allocator has to know."""
        first = (2 if self.has_gate else 1) * self.hidden * self.intermediate
        return LayerShape(self.name, self.experts, first, self.hidden * self.intermediate)

    @property
    def matrices(self) -> tuple[tuple[str, int, int], ...]:
        """`(role, rows, columns)` of the matrices of one expert, in stored order."""
        first = ("gate", "up") if self.has_gate else ("up",)
        return (
            *((role, self.intermediate, self.hidden) for role in first),
            ("down", self.hidden, self.intermediate),
        )

    @property
    def fused_parameters(self) -> tuple[str, ...]:
        """Names of the module's own parameters in a fused layer: weights, then biases."""
        first = "gate_up_proj" if self.has_gate else "up_proj"
        names = [first, "down_proj", *((f"{first}_bias", "down_proj_bias") if self.has_bias else ())]
        return tuple(f"{self.name}.{name}" for name in names)

    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters of the routed experts, in the architecture's own form."""
        if self.family is None:
            return self.fused_parameters
        return tuple(
            f"{self.name}.{self.family.expert.format(expert)}.{part}"
            for expert in range(self.experts)
            for part in (self.family.up, self.family.down)
        )
