"""A skipping policy at work in a model: between each router and its experts.

A hook before every expert layer sorts what the router chose, asks which places run, and hands on, in that order, the
expert -1 at those that do not: the packed kernels do not read these experts. An expert layer that is not packed keeps
its indices and gets weights of zero there, which gives the same numbers and saves nothing. Shared experts have no hook,
and without a policy there is none at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from moesaic.errors import InvalidPolicy, UnsupportedModel
from moesaic.families import find_moe_layers
from moesaic.kernels.skipping import MaskDecision, native_decision
from moesaic.prune import Otp, Pruning, Routed
from moesaic.prune.decide import decide, rescale, sort_places
from moesaic.runtime.experts import PackedExperts

SKIPPED = -1  # the expert of a place that does not run
ATTENTION = ("self_attn", "attention", "self_attention", "attn")
_ATTRIBUTE = "_moesaic_skipping"

# layer name, its routing -> which places run `[tokens, k]`: bool, or float from 0 to 1 to be differentiated
Routing = Callable[[str, Routed], Tensor]
# layer name, hidden, index, weights -> index and weights by weight, without what does not run; None: ask the routing
Shortcut = Callable[[str, Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None]


class Sequences:
    """Which tokens of a call belong together, and what attention each received. Filled by hooks during the call."""

    def __init__(self) -> None:
        self.batch = 1
        self.mask: Tensor | None = None  # [batch, length with cache] bool, None without padding
        self.received: dict[str, Tensor] = {}  # attention module -> [batch, length]

    def start(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model runs."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        self.batch = 1 if tokens is None else tokens.shape[0]
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        given = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self.mask = None if given is None or bool(given.all()) else given.bool()
        self.received = {}

    def numbers(self, tokens: int, device: torch.device) -> Tensor:
        """The sequence of every token of this call, -1 for padding. `[tokens]` int64"""
        length = tokens // self.batch
        found = torch.arange(self.batch, device=device)[:, None].expand(-1, length)
        if self.mask is not None:  # it covers the cache too; the tokens of this call are the last ones
            found = torch.where(self.mask[:, -length:].to(device), found, -1)
        return found.reshape(-1)

    def take_attention(self, name: str, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Sum up the attention maps `[batch, heads, queries, keys]` of a layer: received by each token, mean of heads.

        Nothing is kept of a call with fewer queries than keys: most of the queries were in earlier calls.

        Raises:
            InvalidPolicy: the model's attention gives no maps.
        """
        maps = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if maps is None:
            raise InvalidPolicy(f"{name} gives no attention maps, which odp needs; use --protect 0 or another policy")
        if maps.shape[-2] < maps.shape[-1] or maps.shape[-2] == 1:
            return
        share = maps.detach().float().mean(dim=1)  # (B, L, L)
        if self.mask is not None:
            share = torch.where(self.mask[:, :, None].to(share.device), share, 0.0)  # rows of padding are NaN
        seen = (share > 0).sum(dim=1).clamp(min=1)  # queries that attend to the token
        self.received[name] = share.sum(dim=1) / seen


@dataclass(frozen=True)
class Counted:
    """How many of the router's choices ran; counts of several texts can be put together with `+`.

    Attributes:
        kept: layer name -> how often each place ran, `[k]`.
        tokens: layer name -> tokens that it saw, padding apart.
    """

    kept: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Counted) -> Counted:
        layers = dict.fromkeys([*self.kept, *other.kept])
        return Counted(
            {name: sum(each.kept[name] for each in (self, other) if name in each.kept) for name in layers},  # type: ignore[misc]
            {name: self.tokens.get(name, 0) + other.tokens.get(name, 0) for name in layers},
        )

    def shares(self) -> dict[str, float]:
        """Layer name -> share of its expert activations that ran."""
        return {name: float(kept.mean()) / max(1, self.tokens[name]) for name, kept in self.kept.items()}

    def share(self) -> float:
        """The share of all layers together; 1 when nothing was counted."""
        total = sum(self.tokens[name] * len(kept) for name, kept in self.kept.items())
        return float(sum(kept.sum() for kept in self.kept.values())) / total if total else 1.0


class LayerHook:
    """What stands before the experts of one layer."""

    def __init__(self, skipping: Skipping, name: str) -> None:
        self._skipping, self._name = skipping, name

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """See `torch.nn.Module.register_forward_pre_hook`."""
        return self._skipping.before(self._name, module, args, kwargs)

    def fused(self) -> MaskDecision | None:
        """What native code may decide by itself instead of calling this; None where somebody wants to know."""
        return None if self._skipping.is_counting else self._skipping.fused.get(self._name)


class Skipping:
    """The hooks in a model, and the count of what ran.

    Attributes:
        name: of the policy, for people.
        routing: what decides; None lets everything run. Setting it drops the shortcut, which stood for another one.
        shortcut: decides the same as `routing` for packed layers, faster: layer name and what the layer is given -> the
            experts and weights that it gets. None where there is none.
        fused: layer name -> the same for native code that runs whole layers; empty where there is none.
        sequences: see `Sequences`.
        counts: layer name -> how many experts it has.
        kept: layer name -> how often each place ran since `count` was called, `[k]`; empty when not counting.
    """

    def __init__(self, model: PreTrainedModel, needs: tuple[str, ...] = ()) -> None:
        """Put the hooks in.

        Args:
            model: packed or not.
            needs: `"sequences"` and `"attention"`, as in `Policy`.

        Raises:
            UnsupportedModel: no expert layers, or ones that take a one-hot mask and have one expert a token.
            InvalidPolicy: a policy that needs attention maps, which the model does not give.
        """
        self.name = ""
        self._routing: Routing | None = None
        self.shortcut: Shortcut | None = None
        self.fused: Mapping[str, MaskDecision] = {}
        self.sequences = Sequences()
        self.kept: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._counting = False
        self._needs = needs
        self._layers = expert_modules(model)
        self.counts = {name: _count(module) for name, module in self._layers.items()}
        self._attention: dict[str, str] = {}
        self._restore: Callable[[], None] | None = None
        if "attention" in needs:
            self._attention = _attention_of(model, self._layers)
            self._restore = partial(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation("eager")  # the others keep no maps
        base = model.base_model
        self._handles: list[RemovableHandle] = [base.register_forward_pre_hook(self.sequences.start, with_kwargs=True)]
        for name, module in self._layers.items():
            self._handles.append(module.register_forward_pre_hook(LayerHook(self, name), with_kwargs=True))
        for name in set(self._attention.values()):
            take = partial(self.sequences.take_attention, name)
            self._handles.append(model.get_submodule(name).register_forward_hook(take))

    @property
    def routing(self) -> Routing | None:
        """See the class."""
        return self._routing

    @routing.setter
    def routing(self, rule: Routing | None) -> None:
        self._routing, self.shortcut, self.fused = rule, None, {}

    @property
    def is_counting(self) -> bool:
        """Whether `count` was called: somebody wants to know what runs."""
        return self._counting

    @property
    def layers(self) -> list[str]:
        """Names of the expert layers, in order."""
        return list(self._layers)

    def remove(self) -> None:
        """Take the hooks out: the model is what it was."""
        for handle in self._handles:
            handle.remove()
        if self._restore is not None:
            self._restore()
            self._restore = None

    def count(self) -> None:
        """Start to count what runs, from zero. Padding is not counted."""
        self._counting = True
        self.kept, self._tokens = {}, {}

    def counted(self) -> Counted:
        """What ran since `count`."""
        return Counted(dict(self.kept), dict(self._tokens))

    def shares(self) -> dict[str, float]:
        """Layer name -> share of its expert activations that ran since `count`."""
        return self.counted().shares()

    def share(self) -> float:
        """The share of all layers together; 1 when nothing was counted."""
        return self.counted().share()

    def before(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Decide what of a layer's arguments goes on to it."""
        if self.routing is None:
            return None
        hidden, index, weights = (*args, *kwargs.values())
        if self.shortcut is not None and isinstance(module, PackedExperts) and not torch.compiler.is_compiling():
            decided = self.shortcut(name, hidden, index, weights)
            if decided is not None:
                if self._counting:
                    self._add(name, decided[0] != SKIPPED)
                return (hidden, *decided), {}
        ranked, experts, _ = sort_places(weights, index)
        routed = Routed(ranked, experts, hidden, self.counts[name])
        chosen = self.routing(name, self._with_context(name, routed))
        if self._counting:
            self._add(name, chosen)
        if isinstance(module, PackedExperts) and chosen.dtype == torch.bool:
            experts = torch.where(chosen, experts, SKIPPED)
        return (hidden, experts, rescale(ranked, chosen)), {}  # experts add up in any order of the places

    def _with_context(self, name: str, routed: Routed) -> Routed:
        if "sequences" not in self._needs:
            return routed
        routed = replace(routed, sequences=self.sequences.numbers(len(routed.hidden), routed.hidden.device))
        received = self.sequences.received.get(self._attention.get(name, ""))
        if received is None:
            return routed
        size = routed.hidden.float().abs().sum(dim=-1)
        return replace(routed, significance=size * received.reshape(-1).to(size.device))

    def _add(self, name: str, chosen: Tensor) -> None:
        real = chosen.detach().float()
        if self.sequences.mask is not None:
            real = real[self.sequences.numbers(len(real), real.device) >= 0]
        self.kept[name] = self.kept.get(name, torch.zeros(real.shape[1])) + real.sum(dim=0).cpu()
        self._tokens[name] = self._tokens.get(name, 0) + len(real)


def attach(model: PreTrainedModel, pruning: Pruning) -> Skipping:
    """Let a policy decide in a model from now on; one that was there before goes.

    Raises:
        InvalidPolicy: it was made for other layers, or needs attention maps that the model does not give.
        UnsupportedModel: see `Skipping`.
    """
    detach(model)
    modules = expert_modules(model)
    if set(modules) != set(pruning.layers):
        other = sorted(set(modules) ^ set(pruning.layers))[0]
        raise InvalidPolicy(f"the {pruning.name} policy was made for another model: {other} is not in both")
    skipping = Skipping(model, pruning.policy.needs)
    states = {name: dict(state) for name, state in pruning.layers.items()}

    def routing(name: str, routed: Routed) -> Tensor:
        state = states[name]
        if state["threshold"].device != routed.hidden.device:
            state = states[name] = {key: tensor.to(routed.hidden.device) for key, tensor in state.items()}
        return decide(pruning.policy, routed, state)

    skipping.name = f"{pruning.name}, target {pruning.target:g}"
    skipping.routing = routing
    decision = native_decision(pruning.policy, model.device)
    if decision is not None:

        def shortcut(name: str, hidden: Tensor, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
            return decision(hidden, index, weights, pruning.layers[name], skipping.counts[name])

        skipping.shortcut = shortcut
        if isinstance(pruning.policy, Otp):
            skipping.fused = {name: MaskDecision(pruning.policy, state) for name, state in pruning.layers.items()}
    setattr(model, _ATTRIBUTE, skipping)
    return skipping


def detach(model: PreTrainedModel) -> None:
    """Turn skipping off: the outputs are those of the unpruned model, bit for bit."""
    skipping = skipping_of(model)
    if skipping is not None:
        skipping.remove()
        delattr(model, _ATTRIBUTE)


def skipping_of(model: PreTrainedModel) -> Skipping | None:
    """The policy at work in a model, None without one."""
    return getattr(model, _ATTRIBUTE, None)


def expert_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The expert layers of a loaded model, packed or not, by name.

    Raises:
        UnsupportedModel: there are none, or they have one expert a token and nothing could be skipped.
    """
    kind = str(model.config.model_type)
    found: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, PackedExperts)
    }
    one_hot = any(getattr(module, "one_hot", False) for module in found.values())
    try:
        others = find_moe_layers(model, kind)
    except UnsupportedModel:
        others = []
        if not found:
            raise
    found |= {layer.name: model.get_submodule(layer.name) for layer in others}
    if one_hot or any(layer.family is not None and layer.family.one_hot for layer in others):
        raise UnsupportedModel(f"model type {kind!r} runs one expert for each token: there is nothing to skip")
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def expert_counts(model: PreTrainedModel) -> dict[str, int]:
    """Layer name -> how many experts it has; see `expert_modules`."""
    return {name: _count(module) for name, module in expert_modules(model).items()}


def _count(module: Any) -> int:
    """Number of experts of the layer."""
    return module.experts if isinstance(module, PackedExperts) else int(module.down_proj.shape[0])


def _attention_of(model: PreTrainedModel, layers: dict[str, nn.Module]) -> dict[str, str]:
    """Expert layer -> the attention of the same decoder layer.

    Raises:
        InvalidPolicy: there is none that we know.
    """
    names = dict(model.named_modules())
    found = {}
    for name in layers:
        above = name.rpartition(".")[0]
        while above and not any(f"{above}.{each}" in names for each in ATTENTION):
            above = above.rpartition(".")[0]
        if not above:
            raise InvalidPolicy(f"odp finds no attention beside {name}; use --protect 0 or another policy")
        found[name] = next(f"{above}.{each}" for each in ATTENTION if f"{above}.{each}" in names)
    return found
