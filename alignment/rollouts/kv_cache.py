"""A key-value cache that grows in place.

transformers' dynamic cache concatenates every layer's keys and values at every token, which copies the whole cache
each time. Here full-attention layers write into a buffer of the final length; other kinds of layer (sliding windows,
recurrent states) are left as transformers makes them.
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin


class BufferedLayer(DynamicLayer):  # type: ignore[misc]
    """A full-attention layer whose keys and values are views (B, heads, length, dim) of preallocated buffers."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffers: list[torch.Tensor] = []  # keys and values, each (B, heads, capacity, dim)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends (B, heads, new, dim) keys and values; returns all of them so far."""
        start = self.get_seq_length()
        length = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.capacity = max(self.capacity, length)
            self.buffers = [
                states.new_empty(*states.shape[:2], self.capacity, states.shape[-1])
                for states in (key_states, value_states)
            ]
        elif length > self.capacity:  # a conversation goes on: twice the room, so that all copies together cost one
            self._grow(max(2 * self.capacity, length), start)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:length] = states
        self._view(length)
        return self.keys, self.values

    def crop_to(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens, where there are more."""
        if self.is_initialized and length < self.get_seq_length():
            self._view(length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps (or repeats) the rows ``indices`` (B',) of the batch."""
        length = self.get_seq_length()
        buffers = []
        for buffer in self.buffers:
            chosen = buffer.new_empty(len(indices), *buffer.shape[1:])
            chosen[:, :, :length] = buffer[indices, :, :length]
            buffers.append(chosen)
        self.buffers = buffers
        self._view(length)

    def _grow(self, capacity: int, used: int) -> None:
        larger = [buffer.new_empty(*buffer.shape[:2], capacity, buffer.shape[-1]) for buffer in self.buffers]
        for new, old in zip(larger, self.buffers, strict=True):
            new[:, :, :used] = old[:, :, :used]
        self.capacity, self.buffers = capacity, larger

    def _view(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


def new_cache(config: Any, capacity: int) -> DynamicCache:
    """A cache for a model of this configuration, with room for ``capacity`` tokens in each full-attention layer."""
    cache = DynamicCache(config=config)
    cache.layers = [BufferedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, indices: torch.Tensor) -> None:
    """Keeps (or repeats) the rows ``indices`` (B',) of a cache's batch, recurrent states included."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(indices)  # its batch_select_indices, where it has one, forgets the states
        else:
            layer.batch_select_indices(indices)


def has_states(cache: DynamicCache) -> bool:
    """Whether a layer has recurrent states, which are read on from one token at a time."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def keeps_states_itself(model: Any) -> bool:
    """Whether a model's layers hold recurrent states of their own, which no cache can give other rows."""
    return any(hasattr(module, "_setup_cache") for module in model.modules())


def is_buffered(cache: DynamicCache) -> bool:
    """Whether every layer attends to all earlier tokens, so that one mask of the padding says all."""
    return bool(cache.layers) and all(isinstance(layer, BufferedLayer) for layer in cache.layers)
