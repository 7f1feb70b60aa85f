"""The model as a decoding loop sees it: prompts are read once, then each row goes on by one token at a time.

`Forward` runs any Hugging Face causal LM with attention layers. All rows of a batch are at the same position of their
response, so one column of the cache serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from noisyrl.rollout.cache import BufferCache

# Positions the cache has room for before it grows (by doubling), so that a generous max_tokens costs no memory.
_ROOM_TOKENS = 128


class Forward:
    """Rows on their way; rows that have said the same so far share a slot, and there is room for N slots."""

    slots: int  # in use: the first ones
    position: Tensor  # [N, 1] int64, of the token last fed to each slot
    mask: Tensor | None  # [N, ...] which columns of the cache each slot sees, the last axis; None = all

    def __init__(self, model: PreTrainedModel, max_tokens: int) -> None:
        """max_tokens: how many tokens a row may be fed after its prompt."""
        self.model, self.max_tokens = model, max_tokens
        self.device = model.device
        self.cache = BufferCache()
        self.length = 0  # columns of the cache that are written

    def prefill(self, contexts: Sequence[Sequence[int]], rows: int) -> Tensor:
        """Reads prompts, in tokens, into a slot each; logits [slots, V] of the first token. rows: N."""
        width = max(map(len, contexts))
        ids = torch.tensor([[0] * (width - len(context)) + list(context) for context in contexts])
        real = torch.arange(width) >= torch.tensor([[width - len(context)] for context in contexts])
        position = (real.cumsum(1) - 1).clamp(min=0)
        ids, real, position = (x.to(self.device) for x in (ids, real, position))
        logits = self._model(ids, None if real.all() else real, position, logits_to_keep=1)
        self.cache.reserve(rows, room=min(self.max_tokens, _ROOM_TOKENS))
        self.slots, self.length = len(contexts), width
        mask = self._open_mask(real)
        self.position, self.mask = _with_room(position[:, -1:], rows), None if mask is None else _with_room(mask, rows)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [slots, V] after one more token in every slot."""
        self.position += 1
        self.length += 1
        mask = None if self.mask is None else self.mask[: self.slots, ..., : self.length]
        return self._model(tokens[:, None], mask, self.position[: self.slots])

    def move(self, source: Tensor, target: Tensor, slots: int) -> None:
        """Slots `target` become copies of slots `source`; then the first `slots` are in use."""
        self.cache.move(source, target, slots)
        for x in (self.position, self.mask):
            if x is not None:
                x[target] = x[source]
        self.slots = slots

    def _open_mask(self, real: Tensor) -> Tensor | None:
        """All columns but a prompt's padding (False in `real`), those to come included."""
        # Without padding a GPU is faster with no mask, a CPU with one (grouped heads are not repeated then).
        if real.all() and self.device.type != "cpu":
            return None
        rows, width = real.shape
        seen = torch.ones(rows, width + self.max_tokens, dtype=torch.bool, device=self.device)
        seen[:, :width] = real
        ready = self.model.config._attn_implementation in ("sdpa", "eager")
        if not ready or layer_kinds(self.model) != {"full_attention"}:
            return seen
        # Ready for the kernel, so that the model builds nothing per step; an additive mask suits both.
        return additive(seen, self.model.dtype)[:, None, None]

    def _model(self, ids: Tensor, mask: Tensor | None, position: Tensor, **options: int) -> Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )
        return out.logits[:, -1]


def layer_kinds(model: PreTrainedModel) -> set[str]:
    """What the layers of a model attend to, as its config says."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True, the lowest number of `dtype` elsewhere: what attention adds to its scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def _with_room(x: Tensor, rows: int) -> Tensor:
    """x [slots, ...] as the first of `rows`; the others hold nothing yet."""
    room = x.new_zeros(rows, *x.shape[1:])
    room[: len(x)] = x
    return room
