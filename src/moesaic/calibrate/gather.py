"""Statistics of all experts from one pass over the calibration text: forward, and back where a gradient is asked for.

Forward, layer by layer: tokens routed, routing mass, moments and, without gradients, the errors of rounding. With
gradients, the inputs of every layer are kept and the layers are gone through again from the last to the first, each
loaded alone: its output's gradient comes from the layer after it, the errors and the gradient at the experts' sum give
the Fisher cost, and the gradient at its input goes to the layer before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from moesaic.calibrate.meter import ErrorMeter
from moesaic.calibrate.mlp import ExpertMlp, chunks
from moesaic.calibrate.moments import Moment, sample_rows
from moesaic.calibrate.store import Store
from moesaic.calibrate.stream import LayerStream, Routed, giving
from moesaic.errors import CorruptFile
from moesaic.families import MoeLayer
from moesaic.progress import SILENT, Progress
from moesaic.records import LayerStats


def gather(
    stream: LayerStream,
    meter: ErrorMeter | None,
    *,
    all_experts: bool = False,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> dict[str, LayerStats]:
    """Statistics of every expert layer, by name.

    Args:
        stream: the model and the text.
        meter: which errors to measure; None for none.
        all_experts: every token counts for the second moments of every expert, routed there or not.
        store: keeps finished layers; a run that finds some there goes on from them.
        progress: counts decoder layers, twice where a gradient is needed.

    Raises:
        CorruptFile: activations that are not finite.
        StorageFull: no room for the hidden states that are kept.
    """
    store = store or Store()
    backward = meter is not None and "fisher" in meter.wanted
    inside = sum(stream.moe(number) is not None for number in range(stream.count))
    kept = stream.count + inside + 3 if backward else 2  # on the way back also two gradients and what went in first
    stream.reserve(store, kept=kept, mapped=5 if backward else 3)
    progress.start("calibrate", stream.count * (2 if backward else 1))
    way = _Way(None if backward else meter, all_experts, keep_all=backward)
    _go_forward(stream, way, store, progress)
    if backward and meter is not None:
        _go_back(stream, meter, store, progress)
    found = {}
    for number in range(stream.count):
        layer = stream.moe(number)
        if layer is not None:
            parts = store.get(f"stats-{number}")
            errors = store.get(f"errors-{number}") if backward else {}
            found[layer.name] = LayerStats(tokens=stream.tokens.numel(), **parts, **errors)
    return found


@dataclass(frozen=True)
class _Way:
    """What to do on the way forward; `keep_all` keeps inputs of layers and sums of experts for the way back."""

    meter: ErrorMeter | None
    all_experts: bool
    keep_all: bool


def _go_forward(stream: LayerStream, way: _Way, store: Store, progress: Progress) -> None:
    """Through all layers."""
    done = max((number + 1 for number in range(stream.count) if store.has(f"forward-{number}")), default=0)
    states = stream.new_states()
    states.copy_(store.get(f"forward-{done - 1}")["states"] if done else stream.embed())
    if way.keep_all and not done:
        store.put("embedded", {"states": states})
    progress.advance(done)
    for number in range(done, stream.count):
        out = None
        with stream.loaded(number):
            layer = stream.moe(number)
            if layer is not None:
                routed = stream.route(number, states)
                _check_finite(layer, routed)
                out = stream.shelf.empty(*routed.hidden.shape).zero_()
                store.put(f"stats-{number}", _forward(stream, layer, routed, out, way).tensors())
            stream.finish(number, states, out)
        kept = {"states": states}
        if way.keep_all and out is not None:
            kept["out"] = out
        store.put(f"forward-{number}", kept)
        if not way.keep_all:
            store.drop(f"forward-{number - 1}")
        progress.advance(1)


def _go_back(stream: LayerStream, meter: ErrorMeter, store: Store, progress: Progress) -> None:
    """From the last layer to the first, each with the gradient that the one after it left."""
    number = min((number for number in range(stream.count) if store.has(f"backward-{number}")), default=stream.count)
    progress.advance(stream.count - number)
    if number < stream.count:
        gradient = store.get(f"backward-{number}")["gradient"]
    else:
        gradient = _loss_gradient(stream, store.get(f"forward-{number - 1}")["states"])
    for at in reversed(range(number)):
        before = store.get(f"forward-{at - 1}" if at else "embedded")["states"]
        out = store.get(f"forward-{at}").get("out")
        with stream.loaded(at):
            gradient, errors = _backward(stream, at, (before, out), gradient, meter)
        store.put(f"errors-{at}", errors)
        store.put(f"backward-{at}", {"gradient": gradient})
        store.drop(f"backward-{at + 1}")
        progress.advance(1)


def _check_finite(layer: MoeLayer, routed: Routed) -> None:
    if not bool(torch.isfinite(routed.hidden).all()):
        raise CorruptFile(
            f"{layer.name}: the activations on the calibration text are not finite; a weight before it holds NaN or "
            "infinity, or the model overflows"
        )


@torch.no_grad()
def _forward(stream: LayerStream, layer: MoeLayer, routed: Routed, out: Tensor, way: _Way) -> LayerStats:
    """Statistics of one layer; adds the experts' outputs to `out` `[T, hidden]`."""
    sample = routed.hidden[sample_rows(len(routed.hidden))]
    layer_moment = Moment(layer.hidden, diagonal=True)
    layer_moment.add(sample)
    gate_up, down, errors = [], [], []
    for expert in range(layer.experts):
        mlp = ExpertMlp.of(stream.checkpoint.expert(layer, expert), stream.activation(layer))
        token, weight = routed.of(expert)
        moments = Moment(layer.hidden, diagonal=True), Moment(layer.intermediate, diagonal=True)
        error = _Errors(mlp, way.meter) if way.meter else None
        for rows in chunks(len(token), mlp.chunk()):
            x = routed.hidden[token[rows]]
            inner = mlp.inner(x)
            y = mlp.outer(inner)
            if not way.all_experts:
                moments[0].add(x)
                moments[1].add(inner)
            out.index_add_(0, token[rows], y * weight[rows, None])
            if error:
                error.add(x, inner, y, weight[rows], None)
        for rows in chunks(len(routed.hidden) if way.all_experts else 0, mlp.chunk()):
            moments[0].add(routed.hidden[rows])
            moments[1].add(mlp.inner(routed.hidden[rows]))
        at_large = Moment(layer.intermediate, diagonal=True)
        at_large.add(mlp.inner(sample))
        gate_up.append(moments[0].shrunk(layer_moment.mean()).double())
        down.append(moments[1].shrunk(at_large.mean()).double())
        if error:
            errors.append(error.result())
    return LayerStats(
        tokens=len(routed.hidden),
        count=torch.bincount(routed.index.flatten(), minlength=layer.experts),
        mass_before=_mass_before(layer, routed),
        mass=_sum_by_expert(layer, routed.index, routed.weight),
        gate_up_moment=torch.stack(gate_up),
        down_moment=torch.stack(down),
        **_stacked(errors),
    )


def _mass_before(layer: MoeLayer, routed: Routed) -> Tensor:
    """Softmax probabilities of the chosen experts, summed by expert; the applied weights where no logits are seen."""
    if routed.logits is None:
        return _sum_by_expert(layer, routed.index, routed.weight)
    chosen = routed.logits.softmax(dim=-1).gather(1, routed.index)
    return _sum_by_expert(layer, routed.index, chosen)


def _sum_by_expert(layer: MoeLayer, index: Tensor, values: Tensor) -> Tensor:
    total = torch.zeros(layer.experts, dtype=torch.float64)
    return total.index_add_(0, index.flatten(), values.flatten().double())


class _Errors:
    """Errors of one expert at every width, accumulated over its tokens."""

    def __init__(self, mlp: ExpertMlp, meter: ErrorMeter) -> None:
        self._mlp, self._meter = mlp, meter
        exact = {"first": mlp.first, "down": mlp.down}
        self._rounded = [meter.rounded(exact, bits) for bits in meter.bits]
        widths = len(meter.bits)
        self._output = torch.zeros(widths, 3, dtype=torch.float64)  # both, gate and up alone, down alone
        self._fisher = torch.zeros(widths, 3, dtype=torch.float64)

    def add(self, x: Tensor, inner: Tensor, y: Tensor, weight: Tensor, gradient: Tensor | None) -> None:
        """Take in tokens with their exact results, and the gradient of the loss at the layer's output."""
        if not self._meter.wanted & {"output_error", "fisher"}:
            return
        for place, matrices in enumerate(self._rounded):
            rounded = self._mlp.with_matrices(matrices)
            rounded_inner = rounded.inner(x)
            results = [rounded.outer(rounded_inner)]
            if self._meter.entries:
                results += [self._mlp.outer(rounded_inner), rounded.outer(inner)]
            for kind, result in enumerate(results):
                change = (result - y) * weight[:, None]
                self._output[place, kind] += change.square().sum(dtype=torch.float64)
                if gradient is not None:
                    self._fisher[place, kind] += (change * gradient).square().sum(dtype=torch.float64)

    def result(self) -> dict[str, Tensor]:
        """`[W]` and `[W, 2]` tensors under the names of `LayerStats`."""
        wanted, made = self._meter.wanted, {}
        if "weight_error" in wanted:
            made["weight_error"] = self._weight_error()
        for name, sums in (("output_error", self._output.sqrt()), ("fisher", self._fisher)):
            if name in wanted:
                made[name] = sums[:, 0].clone()
                if self._meter.entries:
                    made[f"{name}_entries"] = sums[:, 1:].clone()
        return made

    def _weight_error(self) -> Tensor:
        rows = []
        for matrices in self._rounded:
            exact = {"first": self._mlp.first, "down": self._mlp.down}
            rows.append([(matrices[name] - exact[name]).square().sum(dtype=torch.float64) for name in exact])
        return torch.tensor(rows, dtype=torch.float64)


def _stacked(errors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    names: Collection[str] = errors[0] if errors else ()
    return {name: torch.stack([each[name] for each in errors]) for name in names}


def _loss_gradient(stream: LayerStream, states: Tensor) -> Tensor:
    """Gradient of the summed next-token cross-entropy at the last decoder layer's output. `[n, length, hidden]`"""
    gradient = stream.new_states()
    for rows in stream.batches:
        last = states[rows].clone().requires_grad_()
        logits = stream.logits(rows, last)[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1).float(), stream.tokens[rows][:, 1:].flatten(), reduction="sum")
        (gradient[rows],) = torch.autograd.grad(loss, last)
    return gradient


def _backward(
    stream: LayerStream, number: int, trail: tuple[Tensor, Tensor | None], gradient: Tensor, meter: ErrorMeter
) -> tuple[Tensor, dict[str, Tensor]]:
    """Through one loaded layer backward: the gradient at its input, and the errors of its experts."""
    layer = stream.moe(number)
    inputs, out = trail
    if layer is None or out is None:
        return _dense_gradient(stream, number, inputs, gradient), {}
    routed = stream.route(number, inputs)
    at_sum = _gradient_at_sum(stream, number, trail, gradient)
    at_hidden = stream.shelf.empty(*routed.hidden.shape).zero_()
    at_weight = torch.zeros_like(routed.weight)
    errors = []
    for expert in range(layer.experts):
        mlp = ExpertMlp.of(stream.checkpoint.expert(layer, expert), stream.activation(layer))
        error = _Errors(mlp, meter)
        token, place = torch.where(routed.index == expert)
        for rows in chunks(len(token), mlp.chunk()):
            chosen, slot = token[rows], place[rows]
            x = routed.hidden[chosen].requires_grad_()
            inner = mlp.inner(x)
            y = mlp.outer(inner)
            weight, above = routed.weight[chosen, slot], at_sum[chosen]
            (below,) = torch.autograd.grad(y, x, above * weight[:, None])
            at_hidden.index_add_(0, chosen, below)
            with torch.no_grad():
                at_weight[chosen, slot] = (y * above).sum(dim=-1)
                error.add(x.detach(), inner.detach(), y.detach(), weight, above)
        errors.append(error.result())
    gradients = _Above(gradient, at_hidden, at_weight)
    return _gradient_at_input(stream, number, trail, gradients), _stacked(errors)


def _dense_gradient(stream: LayerStream, number: int, inputs: Tensor, gradient: Tensor) -> Tensor:
    below = stream.new_states()
    for rows in stream.batches:
        x = inputs[rows].clone().requires_grad_()
        (below[rows],) = torch.autograd.grad(stream.call(number, x, None), x, gradient[rows])
    return below


def _gradient_at_sum(stream: LayerStream, number: int, trail: tuple[Tensor, Tensor | None], gradient: Tensor) -> Tensor:
    """Gradient at the weighted sum of the experts. `[T, hidden]`"""
    inputs, out = trail
    assert out is not None
    at_sum = stream.shelf.empty(*out.shape)
    for rows, part in stream.parts():
        leaf = out[part].clone().requires_grad_()
        made = stream.call(number, inputs[rows], giving(leaf))
        (at_sum[part],) = torch.autograd.grad(made, leaf, gradient[rows])
    return at_sum


@dataclass(frozen=True)
class _Above:
    """Gradients at what a decoder layer gives out, and at what its experts are given: hidden states and weights."""

    out: Tensor
    hidden: Tensor
    weight: Tensor


def _gradient_at_input(stream: LayerStream, number: int, trail: tuple[Tensor, Tensor | None], above: _Above) -> Tensor:
    """Gradient at the layer's input: past the experts, and through what they are given."""
    inputs, out = trail
    assert out is not None
    below = stream.new_states()
    for rows, part in stream.parts():
        given: list[Tensor] = []

        def take(x: Tensor, _: Tensor, weights: Tensor, given: list[Tensor] = given, part: slice = part) -> Tensor:
            given.extend((x, weights))
            return out[part].view(x.shape)

        x = inputs[rows].clone().requires_grad_()
        ends = [stream.call(number, x, take), *given]
        gradients = [above.out[rows], above.hidden[part], above.weight[part]]
        pairs = [(end, at.view(end.shape).to(end.dtype)) for end, at in zip(ends, gradients, strict=True)]
        kept = [pair for pair in pairs if pair[0].requires_grad]
        (below[rows],) = torch.autograd.grad([end for end, _ in kept], x, [at for _, at in kept])
    return below
