"""One token per row through decoders whose arithmetic is known exactly: Qwen3 and Llama in float32 on a CPU.

At one token per row Hugging Face's modules cost more than the matrix products in them. Here the projections of a layer
are joined and laid out for the product once per batch, norm weights folded into them; query heads that share keys meet
them in one product, so nothing is repeated; the rotary table is computed once. These are the sums of the modules in
another order: logits differ from theirs by float rounding alone. A model that deviates in anything keeps its own
forward pass. The price is a second copy of the weights while a batch is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from noisyrl.known import Layer, joined, known, layers, rotary
from noisyrl.processor import each_row
from noisyrl.rollout.cache import BufferLayer
from noisyrl.rollout.forward import Forward, additive

# Slots from which compiled loops ask the keys. With fewer a rollout gains too little for the .2 s that they take to
# import: what a warm-started policy says to 16 prompts needs about 50 slots, the first step then starts without them.
_COMPILED_FROM = 112


def decodable(model: PreTrainedModel) -> bool:
    """Whether `Decoder` computes what this model does. That parts are in training mode does not matter here."""
    return known(model, training=True)


class Decoder(Forward):
    """`Forward` with a `step` of our own, for a model that is `decodable`. H query heads and K key heads of size E."""

    def __init__(self, model: PreTrainedModel, max_tokens: int) -> None:
        super().__init__(model, max_tokens)
        core: Any = model.model  # torch types what hangs on a module as tensor or module
        config = model.config
        self.core = core
        self.key_heads, self.size = config.num_key_value_heads, core.layers[0].self_attn.head_dim
        self.turning = config.num_attention_heads + self.key_heads  # heads that rotary positions apply to
        self.eps = config.rms_norm_eps
        self.layers = [
            Layer(w.qkv.contiguous(), w.heads, w.out.contiguous(), w.gate_up.contiguous(), w.down.contiguous())
            for w in layers(core)
        ]
        self.embedding: Tensor = core.embed_tokens.weight
        self.output = joined(model.lm_head, after=core.norm).contiguous()

    def prefill(self, contexts: Sequence[Sequence[int]], rows: int) -> Tensor:
        logits = super().prefill(contexts, rows)
        self.cos, self.sin = rotary(self.core, int(self.position.max()) + self.max_tokens + 1)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        self.position += 1
        self.length += 1
        now = self.position[: self.slots, 0]
        self.now = [table.index_select(0, now)[:, None] for table in (self.cos, self.sin)]
        x_ND = self.embedding.index_select(0, tokens)
        for index, layer in enumerate(self.layers):
            mixed = (self._normed(x_ND) @ layer.qkv).view(len(x_ND), -1, self.size)  # [N, H + 2 K, E]
            x_ND.addmm_(self._attended(index, mixed, layer.heads), layer.out)
            gate, up = (self._normed(x_ND) @ layer.gate_up).chunk(2, dim=1)
            x_ND.addmm_(F.silu(gate).mul_(up), layer.down)
        return self._normed(x_ND) @ self.output

    def _attended(self, index: int, mixed: Tensor, heads: Tensor | None) -> Tensor:
        """[N, H E] what the new token sees. mixed: its queries, keys and values [N, H + 2 K, E]; heads: see `Layer`."""
        ask = self._ask_compiled if self.slots >= _COMPILED_FROM else self._ask
        scores, values = ask(self.cache.layers[index], mixed, heads)
        return (scores.softmax(-1) @ values.flatten(0, 1)).view(len(mixed), -1)

    def _ask(self, cache: BufferLayer, mixed: Tensor, heads: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores [N K, H / K, length] and values [N, K, length, E], those of the new token included."""
        turning, value = mixed.tensor_split([self.turning], 1)
        if heads is not None:
            turning = self._normed(turning) * heads
        turned = torch.addcmul(turning * self.now[0], turning.roll(self.size // 2, -1), self.now[1])
        query, key = turned.tensor_split([self.turning - self.key_heads], 1)
        keys, values = cache.update(key[:, :, None], value[:, :, None])
        query = query.reshape(len(query) * self.key_heads, -1, self.size)
        mask = query.new_zeros(1) if self.mask is None else self.mask[: self.slots].flatten(0, 1)[..., : self.length]
        return torch.baddbmm(mask, query, keys.flatten(0, 1).mT, alpha=self.size**-0.5), values

    def _ask_compiled(self, cache: BufferLayer, mixed: Tensor, heads: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `_ask`, in one pass."""
        from noisyrl.rollout import kernels

        _, values = cache.extend(1)
        heads = mixed.new_empty(0, self.size) if heads is None else heads
        scores = mixed.new_empty(len(mixed), self.turning - self.key_heads, self.length)
        tables = self.position, self.cos, self.sin
        each_row(kernels.ask, len(mixed), mixed, heads, self.eps, *tables, cache.keys, cache.values, scores)
        return scores.view(len(mixed) * self.key_heads, -1, self.length), values

    def _normed(self, x: Tensor) -> Tensor:
        """x divided by its root mean square over the last axis."""
        return x * torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(self.eps).rsqrt_()[..., None]

    def _open_mask(self, real: Tensor) -> Tensor | None:
        if real.all():
            return None
        seen = torch.cat((real, real.new_ones(len(real), self.max_tokens)), dim=1)
        return additive(seen, torch.float32)[:, None, None].repeat(1, self.key_heads, 1, 1)
