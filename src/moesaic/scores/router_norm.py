"""Router l2-norm change (Chowdhury et al., ICLR 2026, arXiv 2604.06515).

An expert whose router vector changed little in training learned a rarer feature; it activates weakly and is the more
sensitive to noise, so **small change = more bits**. The change of expert s is the difference of norms (not the norm of
the difference), `Λ_s = ||w_s(T)||_2 - ||w_s(0)||_2`.

Without the initial router the final norm alone stands in, on the argument that initial norms are nearly equal. That
step is the weakest of the method; `details` says which of the two was used. Cost: reads the routers only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights


@dataclass(frozen=True)
class RouterNorm:
    """Score = minus the router norm's change (or minus the final norm).

    Attributes:
        use_initial: subtract the initial norm where the initial router is known.
    """

    use_initial: bool = True

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; larger = smaller change = more bits."""
        layers, known = {}, []
        for layer in weights.experts:
            norm = router_norms(weights.router(layer))
            initial = weights.initial_router(layer) if self.use_initial else None
            known.append(initial is not None)
            change = norm - router_norms(initial) if initial is not None else norm
            layers[layer] = tuple((-change).tolist())
        form = "change (final minus initial norm)" if all(known) else "final norm (initial router not given)"
        return Scores(rule="router_norm", layers=layers, details={"router_norm_form": form})


def router_norms(router: Tensor) -> Tensor:
    """l2 norm of every expert's router vector. `[experts, hidden]` -> `[experts]` float64"""
    return torch.linalg.vector_norm(router.double(), dim=1)
