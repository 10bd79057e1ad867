"""Rounding with data, layer by layer: what a layer is rounded for are inputs that passed the rounded layers before it.

In each decoder layer: (1) the layer runs as it is, and every linear layer in it collects the second moment of its
inputs; they are rounded. (2) It runs again with them, up to the experts, which gives every token's experts. (3) The
experts are rounded one at a time: gate and up for their tokens, then down for what the rounded gate and up make of
them. (4) It runs to its end with the rounded experts' outputs, and the result is what the next layer is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moesaic.calibrate.mlp import ExpertMlp, chunks
from moesaic.calibrate.moments import Moment, balanced, sample_rows
from moesaic.calibrate.repair import RouterRepair
from moesaic.calibrate.store import Store
from moesaic.calibrate.stream import LayerStream, Routed
from moesaic.families import MoeLayer
from moesaic.quantize import Quantizer
from moesaic.quantize.grid import split_rows
from moesaic.records import STORED_WIDTH, ExpertWeights, QuantizedWeight
from moesaic.stats import RARE_TOKENS


class CalibratedGuide:
    """Rounds a model with a quantizer that wants second moments. See `packing.build.Guide`.

    Attributes:
        rare: expert layer -> the experts that fewer than `RARE_TOKENS` calibration tokens reached.
        changed: expert layer -> share of tokens whose set of experts is another than in full precision, before and
            after the repair of the router; empty where no router is repaired.
    """

    def __init__(
        self,
        stream: LayerStream,
        quantizer: Quantizer,
        store: Store,
        *,
        affinity: bool = False,
        all_experts: bool = False,
        repair: RouterRepair | None = None,
    ) -> None:
        """Prepare.

        Args:
            stream: the model and the text.
            quantizer: called with the second moment of a matrix' inputs.
            store: keeps the hidden states between layers, so that a later run can go on.
            affinity: weight a token in an expert's moments by its routing weight (MoEQuant's AGQ).
            all_experts: every token counts for the moments of every expert.
            repair: fits each router to the full-precision one; None leaves routers as they are.
        """
        self._stream, self._quantizer, self._store = stream, quantizer, store
        self._affinity, self._all_experts, self._repair = affinity, all_experts, repair
        self.rare: dict[str, list[int]] = {}
        self.changed: dict[str, tuple[float, float]] = {}
        self._states: Tensor | None = None
        self._number = -1
        self._layer: _Layer | None = None

    @property
    def prefixes(self) -> Sequence[str]:
        """Beginnings of the names of everything in each decoder layer, in order."""
        return [self._stream.prefix(number) for number in range(self._stream.count)]

    def resume(self, done: int) -> None:
        """Go on after that many decoder layers that an earlier run finished.

        Raises:
            CorruptFile: what the earlier run kept of them is gone or damaged.
            StorageFull: no room for the hidden states that are kept.
        """
        runs = 2 if self._repair else 1
        self._stream.reserve(self._store, kept=3 * runs, mapped=3 * runs)
        if done == 0:
            self._states = self._stream.embed()
            if self._repair:
                self._repair.start(self._states)
            return
        kept = self._store.get(f"after-{done - 1}")
        self._states = self._stream.new_states()
        self._states.copy_(kept["states"])
        for name, value in kept.items():
            layer, _, role = name.partition("/")
            if role == "rare":
                self.rare[layer] = value.tolist()
            elif role == "changed":
                before, after = value.tolist()
                self.changed[layer] = (before, after)
        if self._repair:
            self._repair.start(kept["exact"])

    def enter(self, number: int, linears: Mapping[str, str]) -> None:
        """Load a decoder layer, and collect the second moments for its linear layers."""
        assert self._states is not None
        self._number = number
        self._layer = _Layer(self._stream, number)
        self._layer.collect(self._states, linears)
        if self._repair:
            self._repair.enter(self._stream, number)

    def linear(self, name: str, weight: Tensor, bits: int) -> QuantizedWeight:
        """Round a linear layer's weight for its inputs."""
        assert self._layer is not None
        rounded = self._quantizer(weight, bits, self._layer.moments[name].mean())
        self._stream.set_parameter(name, rounded.dequantize())
        return rounded

    def route(self) -> None:
        """Send the tokens to the experts, through the rounded linear layers."""
        assert self._layer is not None
        assert self._states is not None
        layer = self._stream.moe(self._number)
        if layer is None:
            return
        self._layer.routed = self._stream.route(self._number, self._states)
        if self._repair:
            router = self._repair.fit(self._stream.parameter(layer.router), self._layer.routed)
            before = self._repair.changed(self._layer.routed)
            self._layer.replaced[layer.router] = router
            self._stream.set_parameter(layer.router, router)
            self._layer.routed = self._stream.route(self._number, self._states)
            self.changed[layer.name] = (before, self._repair.changed(self._layer.routed))
        self._layer.sums = self._stream.shelf.empty(*self._layer.routed.hidden.shape).zero_()
        sample = self._layer.routed.hidden[sample_rows(len(self._layer.routed.hidden))]
        self._layer.sample = sample
        self._layer.at_large = _moment_of(sample)
        counts = torch.bincount(self._layer.routed.index.flatten(), minlength=layer.experts).tolist()
        self.rare[layer.name] = [expert for expert, count in enumerate(counts) if count < RARE_TOKENS]

    @torch.no_grad()
    def expert(
        self, layer: MoeLayer, expert: int, weights: ExpertWeights, widths: Mapping[str, int]
    ) -> dict[str, QuantizedWeight]:
        """Round one expert for its tokens, and add what it makes of them to the layer's output."""
        current = self._layer
        assert current is not None
        assert current.routed is not None
        mlp = ExpertMlp.of(weights, self._stream.activation(layer))
        if self._repair:
            self._repair.add_expert(expert, mlp)
        token, weight = current.routed.of(expert)
        pool = self._pool(current.routed, token, weight)
        rounded: dict[str, QuantizedWeight] = {}
        if widths["gate_up"] != STORED_WIDTH:
            moment = pool.moment(layer.hidden, mlp.chunk(), lambda x: x).shrunk(current.at_large)
            first = {role: each for role, each in weights.matrices().items() if role != "down"}
            rounded |= self._round_together(first, widths["gate_up"], moment)
            del moment  # the largest thing here; down's is larger still
            mlp = mlp.with_matrices({"first": torch.cat([rounded[role].dequantize() for role in first])})
        if widths["down"] != STORED_WIDTH:
            at_large = _moment_of(mlp.inner(current.sample))
            moment = pool.moment(layer.intermediate, mlp.chunk(), mlp.inner).shrunk(at_large)
            rounded["down"] = self._quantizer(weights.down, widths["down"], moment)
            del moment
            mlp = mlp.with_matrices({"down": rounded["down"].dequantize()})
        for rows in chunks(len(token), mlp.chunk()):
            current.sums.index_add_(0, token[rows], mlp(current.routed.hidden[token[rows]]) * weight[rows, None])
        return rounded

    def _pool(self, routed: Routed, token: Tensor, weight: Tensor) -> _Pool:
        """The tokens that count for an expert's moments."""
        if self._all_experts:
            return _Pool(routed.hidden, torch.arange(len(routed.hidden)), None)
        return _Pool(routed.hidden, token, balanced(weight) if self._affinity else None)

    def _round_together(self, matrices: Mapping[str, Tensor], bits: int, moment: Tensor) -> dict[str, QuantizedWeight]:
        """Round matrices that share their input in one go, so that their second moment is factorised once."""
        both = self._quantizer(torch.cat(list(matrices.values())), bits, moment)
        parts = split_rows(both, [len(matrix) for matrix in matrices.values()])
        return dict(zip(matrices, parts, strict=True))

    def tensor(self, name: str, value: Tensor) -> Tensor:
        """Any other tensor of the layer: as it is, unless it is a repaired router."""
        assert self._layer is not None
        replaced = self._layer.replaced.get(name)
        return value if replaced is None else replaced.to(value.dtype)

    def leave(self) -> None:
        """Send the tokens through the rounded layer and keep what comes out on the disk."""
        assert self._layer is not None
        assert self._states is not None
        layer = self._stream.moe(self._number)
        self._stream.finish(self._number, self._states, self._layer.sums if layer else None)
        self._layer.close()
        self._layer = None
        kept = {"states": self._states}
        kept |= {f"{name}/rare": torch.tensor(experts, dtype=torch.int64) for name, experts in self.rare.items()}
        kept |= {f"{name}/changed": torch.tensor(shares) for name, shares in self.changed.items()}
        if self._repair:
            kept["exact"] = self._repair.leave(self._stream, self._number)
        self._store.put(f"after-{self._number}", kept)
        self._store.drop(f"after-{self._number - 2}")  # the one before is needed until this layer is recorded


@dataclass(frozen=True)
class _Pool:
    """Tokens, and what each counts for."""

    hidden: Tensor
    token: Tensor
    weight: Tensor | None

    def moment(self, size: int, chunk: int, through: Callable[[Tensor], Tensor]) -> Moment:
        """The second moment of what `through` makes of the tokens."""
        found = Moment(size)
        for rows in chunks(len(self.token), chunk):
            x = through(self.hidden[self.token[rows]])
            found.add(x, None if self.weight is None else self.weight[rows])
        return found


class _Layer:
    """The decoder layer at work."""

    def __init__(self, stream: LayerStream, number: int) -> None:
        self._stream, self._number = stream, number
        self._loaded = stream.loaded(number)
        self._loaded.__enter__()
        self.moments: dict[str, Moment] = {}
        self.routed: Routed | None = None
        self.sums = torch.empty(0)
        self.sample = torch.empty(0)
        self.at_large = torch.empty(0)
        self.replaced: dict[str, Tensor] = {}

    @torch.no_grad()
    def collect(self, states: Tensor, linears: Mapping[str, str]) -> None:
        """Run the layer as it is, without its experts, and take the second moments of its linear layers' inputs.

        Linear layers that are given the same tensor (queries, keys and values) share one moment.
        """
        seen: dict[int, tuple[Tensor, Moment]] = {}  # the tensor is held, so that its identity is its own

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                (x,) = inputs
                if id(x) not in seen:
                    moment = self.moments.setdefault(name, Moment(x.shape[-1]))
                    moment.add(x.reshape(-1, x.shape[-1]))
                    seen[id(x)] = (x, moment)
                self.moments[name] = seen[id(x)][1]

            return see

        hooks = [
            self._stream.module(module).register_forward_pre_hook(watch(name))  # type: ignore[arg-type]
            for name, module in linears.items()
        ]
        for rows in self._stream.batches:
            self._stream.call(self._number, states[rows], lambda x, _, __: torch.zeros_like(x))
            seen.clear()
        for hook in hooks:
            hook.remove()

    def close(self) -> None:
        """Give the layer's memory back."""
        self._loaded.__exit__(None, None, None)


def _moment_of(x: Tensor) -> Tensor:
    moment = Moment(x.shape[1])
    moment.add(x)
    return moment.mean()
