"""Router repair: make the router of a compressed layer choose what the full-precision one chose.

Errors of the layers before a router shift its inputs, and tokens change experts. A second set of hidden states is
carried through the full-precision layers beside the first; at each router its weight is fitted, before the experts are
rounded, so that its logits on the compressed model's inputs come near the full-precision ones. The error that counts is
that of the logits of the experts that full precision chose (the top-k logit loss of QESC, EAC-MoE, Chen et al. 2025),
with the other experts' at a smaller weight so that none is drawn up unnoticed. That is least squares with a ridge
toward no change, solved in closed form for each expert.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moesaic.calibrate.mlp import ExpertMlp, chunks
from moesaic.calibrate.stream import LayerStream, Routed
from moesaic.errors import UnsupportedModel

ROWS = 4096  # tokens worked on at a time


@dataclass
class RouterRepair:
    """Fits routers to the full-precision ones.

    Attributes:
        others: weight of the logits of experts that full precision did not choose, against 1 for those it chose.
        ridge: of the mean squared input, against change of the router.
    """

    others: float = 0.1
    ridge: float = 0.01
    _states: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    _routed: Routed | None = field(default=None, repr=False)
    _sums: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def start(self, states: Tensor) -> None:
        """Begin with the hidden states that go into the first layer to come. `[n, length, hidden]`"""
        self._states = states.clone()

    def enter(self, stream: LayerStream, number: int) -> None:
        """A decoder layer is loaded, in full precision: see where the tokens go."""
        if stream.moe(number) is None:
            self._routed = None
            return
        self._routed = stream.route(number, self._states)
        self._sums = stream.shelf.empty(*self._routed.hidden.shape).zero_()

    def fit(self, router: Tensor, routed: Routed) -> Tensor:
        """A router whose logits on `routed.hidden` come near those of full precision. `[experts, hidden]`

        Args:
            router: the weight that gave `routed`.
            routed: the compressed model's inputs and logits.

        Raises:
            UnsupportedModel: an architecture whose router does not show its logits.
        """
        exact = self._routed
        assert exact is not None
        if exact.logits is None or routed.logits is None:
            raise UnsupportedModel("--repair-routers: the routers of this architecture do not show their logits")
        experts, size = router.shape
        missing = exact.logits - routed.logits  # [T, E]
        chosen = torch.zeros_like(missing, dtype=torch.bool).scatter_(1, exact.index, True)
        shared, shared_target = torch.zeros(size, size), torch.zeros(size, experts)
        for rows in chunks(len(missing), ROWS):
            x = routed.hidden[rows]
            shared.addmm_(x.T, x)
            shared_target.addmm_(x.T, missing[rows])
        ridge = self.ridge * float(shared.diagonal().mean())
        shared.mul_(self.others).diagonal().add_(max(ridge, 1e-12))
        repaired = router.clone()
        for expert in range(experts):
            normal, target = shared.clone(), shared_target[:, expert] * self.others
            tokens = chosen[:, expert].nonzero()[:, 0]
            for rows in chunks(len(tokens), ROWS):
                x = routed.hidden[tokens[rows]]
                normal.addmm_(x.T, x, alpha=1 - self.others)
                target.addmv_(x.T, missing[tokens[rows], expert], alpha=1 - self.others)
            factor = torch.linalg.cholesky(normal)
            repaired[expert] += torch.cholesky_solve(target[:, None], factor)[:, 0]
        return repaired

    def changed(self, routed: Routed) -> float:
        """Share of tokens whose set of experts is not the one of full precision."""
        assert self._routed is not None
        here, there = routed.index.sort(dim=1).values, self._routed.index.sort(dim=1).values
        return float((here != there).any(dim=1).float().mean())

    def add_expert(self, expert: int, mlp: ExpertMlp) -> None:
        """Send the tokens of the full-precision model through one of its experts."""
        assert self._routed is not None
        token, weight = self._routed.of(expert)
        for rows in chunks(len(token), mlp.chunk()):
            out = mlp(self._routed.hidden[token[rows]]) * weight[rows, None]
            self._sums.index_add_(0, token[rows], out)

    def leave(self, stream: LayerStream, number: int) -> Tensor:
        """Send the full-precision states through the layer, which is loaded anew. `[n, length, hidden]`"""
        with stream.loaded(number):
            stream.finish(number, self._states, None if self._routed is None else self._sums)
        return self._states
