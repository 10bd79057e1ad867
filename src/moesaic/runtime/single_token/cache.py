"""A cache of keys and values with room to grow.

transformers' dynamic cache makes new tensors for every token and copies all that came before: with 2,048 tokens of
Mixtral-8x7B that is 16 MB a layer, a sixth of what its experts read at 2 bits. Here a token is written behind the
others, and what is copied now and then is copied for hundreds of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

LEAST_ROOM = 256  # tokens


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of the dynamic cache whose tensors are the first tokens of larger ones.

    Whatever else may be done to `keys` and `values` (cut, reordered, replaced), the next update sees that they are no
    longer where it left them, and makes new room. Cut off tokens are overwritten, as they would be gone.
    """

    keys: Tensor
    values: Tensor
    _rooms: tuple[Tensor, Tensor] | None = None
    _shown: tuple[Tensor | None, Tensor | None] = (None, None)  # keys and values as they were left

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put keys and values of some tokens, `[batch, heads, tokens, size]`, behind the others; all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        needed = used + key_states.shape[-2]
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
        if not self._fits(needed, key_states, value_states):
            room = max(needed + LEAST_ROOM, needed * 5 // 4)
            pairs = ((self.keys, key_states), (self.values, value_states))
            self._rooms = tuple(_with_room(old, new, used, room) for old, new in pairs)  # type: ignore[assignment]
        assert self._rooms is not None
        for room_of, new in zip(self._rooms, (key_states, value_states), strict=True):
            room_of[:, :, used:needed] = new
        return self._show(needed)

    def room_for_one(self, rows: int, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], int] | None:
        """Where the next token of so many rows goes: both rooms and the tokens in them; None where there is no room.

        `grow_by_one` has to follow when it is there.
        """
        keys, values, rooms = self.keys, self.values, self._rooms
        if rooms is None or keys is not self._shown[0] or values is not self._shown[1]:
            return None
        room, used = rooms[0], keys.shape[2]
        fits = used < room.shape[2] and room.shape[0] == rows and room.dtype == dtype
        return (rooms, used) if fits and (torch.is_inference_mode_enabled() or not room.is_inference()) else None

    def grow_by_one(self) -> None:
        """Count the token that was put into the room."""
        self._show(self.keys.shape[2] + 1)

    def _show(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Let `keys` and `values` be the first tokens of their rooms."""
        assert self._rooms is not None
        keys, values = self._rooms
        self.keys, self.values = self._shown = keys.narrow(2, 0, tokens), values.narrow(2, 0, tokens)
        return self.keys, self.values

    def _fits(self, needed: int, key_states: Tensor, value_states: Tensor) -> bool:
        """Whether `keys` and `values` are still the beginnings of rooms that are large enough."""
        if self._rooms is None or self.keys is None or self.keys.numel() == 0:
            return False
        parts = zip(self._rooms, (self.keys, self.values), (key_states, value_states), strict=True)
        return all(
            room.shape[2] >= needed
            and room.data_ptr() == old.data_ptr()
            and room.stride() == old.stride()
            and room.shape[:2] == old.shape[:2] == new.shape[:2]
            and room.dtype == new.dtype
            and (torch.is_inference_mode_enabled() or not room.is_inference())
            for room, old, new in parts
        )


def _with_room(old: Tensor, new: Tensor, used: int, room: int) -> Tensor:
    """A larger tensor that begins with the tokens so far."""
    made = new.new_empty(*new.shape[:2], room, new.shape[3])
    if used:
        made[:, :, :used] = old
    return made


def with_room(cache: Cache, layer: int) -> None:
    """Let a layer of a dynamic cache grow in place; any other kind of layer stays what it is."""
    layers = getattr(cache, "layers", ())
    if layer < len(layers) and type(layers[layer]) is DynamicLayer:
        layers[layer].__class__ = GrowingLayer
