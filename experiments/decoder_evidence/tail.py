"""Running a model from one decoder layer on.

Rounding an expert of layer `l` leaves what reaches that layer as it is. The hidden states before every decoder layer
are kept from one run in full precision; a rounded expert then costs the layers from its own on, and not the whole
model. The model runs its own code on a shortened list of layers: nothing of the architecture is written here again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import ModuleList

from ..mixture import Mixture, log_probabilities, token_kl


class Tail:
    """The decoder layers of a mixture's model with the hidden states before each of them.

    Attributes:
        mixture: the model with its held-out blocks.
    """

    def __init__(self, mixture: Mixture) -> None:
        """Run the model once over the blocks; its experts have to be in full precision.

        Raises:
            ValueError: a model that cannot be cut: from its middle layer on it gives something else.
        """
        self.mixture = mixture
        first = mixture.layers[0].name
        self._path = first[: first.index(".layers.") + len(".layers")]
        self._layers: ModuleList = mixture.model.get_submodule(self._path)
        self._before: list[list[Tensor]] = [[] for _ in self._layers]
        hooks = [
            layer.register_forward_pre_hook(self._keep(n), with_kwargs=True) for n, layer in enumerate(self._layers)
        ]
        rows = mixture.blocks.split(mixture.batch)
        for each in rows:
            log_probabilities(mixture.model, each)
        for hook in hooks:
            hook.remove()
        found = self._logs(len(self._layers) // 2, 0)
        if not torch.allclose(found, mixture.log_probabilities[: len(rows[0])], atol=1e-3):
            raise ValueError(f"{self._path}: running from the middle layer on gives other logits than the whole model")

    def kl(self, layer: str) -> Tensor:
        """KL of every block as the experts are now, when only those of `layer` are rounded. `[n]` float64"""
        number = int(layer[len(self._path) + 1 :].partition(".")[0])
        exact = self.mixture.log_probabilities.split(self.mixture.batch)
        return torch.cat([token_kl(p, self._logs(number, at)).mean(dim=1) for at, p in enumerate(exact)])

    def _keep(self, number: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._before[number].append(args[0] if args else kwargs["hidden_states"])

        return hook

    @torch.inference_mode()
    def _logs(self, number: int, batch: int) -> Tensor:
        with self._shortened(number):
            out = self.mixture.model(inputs_embeds=self._before[number][batch], use_cache=False)
        return torch.log_softmax(out.logits[:, :-1].float(), dim=-1)

    @contextmanager
    def _shortened(self, number: int) -> Iterator[None]:
        model = self.mixture.model
        try:
            model.set_submodule(self._path, ModuleList(list(self._layers)[number:]))
            yield
        finally:
            model.set_submodule(self._path, self._layers)
