"""A key-value cache written in place, whose rows can be copied and dropped while a batch is being decoded."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class BufferLayer(CacheLayerMixin):
    """One layer: buffers [rows, heads, capacity, head size], of which the first `length` positions are written."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.rows = key_states.shape[0]
        self.keys, self.values = (x.new_empty(x.shape) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.extend(key_states.shape[2])
        keys[:, :, -key_states.shape[2] :] = key_states
        values[:, :, -key_states.shape[2] :] = value_states
        return keys, values

    def extend(self, positions: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, length, head size] with so many more positions, which are yet to be written."""
        if self.length + positions > self.keys.shape[2]:
            self.reserve(len(self.keys), 2 * (self.length + positions))
        self.length += positions
        return self.keys[: self.rows, :, : self.length], self.values[: self.rows, :, : self.length]

    def reserve(self, rows: int, capacity: int) -> None:
        """What is written, in new buffers with room for `rows` rows and `capacity` positions."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(rows, old.shape[1], capacity, old.shape[3])
            new[: self.rows, :, : self.length] = old[: self.rows, :, : self.length]
            setattr(self, name, new)

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Rows `source` become rows `target`; then the first `rows` exist."""
        for buffer in (self.keys, self.values):
            written = buffer[:, :, : self.length]
            written[target] = written[source]
        self.rows = rows

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


class BufferCache(Cache):
    """What a Hugging Face model is handed as `past_key_values`."""

    layers: list[BufferLayer]  # type: ignore[assignment]  # narrower than a list of any kind of layer

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BufferLayer)

    def reserve(self, rows: int, *, room: int) -> None:
        """Room for `rows` rows, and for `room` more positions before buffers must grow."""
        for layer in self.layers:
            layer.reserve(rows, layer.length + room)

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Rows `source` become rows `target`; then the first `rows` exist. Copies these rows alone."""
        for layer in self.layers:
            layer.move(source, target, rows)
