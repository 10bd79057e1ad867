"""What transformers does for a single token, done faster: see `kernels/single_token.py` for what, and why.

Each file here knows one kind of module. It puts a class of its own before the module's, whose `forward` takes the
native way for a token on a CPU in half precision, and transformers' own for everything else: many tokens, training,
`torch.compile`, other devices, float32.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from moesaic.runtime.single_token import attention, decoder, dense, norm, router, stack
from moesaic.runtime.single_token.native import is_chosen


def use(model: PreTrainedModel) -> None:
    """Let single tokens take the native way in a model that is on a CPU, where the native kernels are."""
    if not is_chosen(model):
        return
    attention.use(model)
    dense.use(model)
    norm.use(model)
    router.use(model)
    decoder.use(model)
    stack.use(model)
