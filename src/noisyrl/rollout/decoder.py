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
from noisyrl.rollout.forward import Forward, additive


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
        position = self.position[: self.slots, 0]
        cos, sin = (table.index_select(0, position)[:, None] for table in (self.cos, self.sin))
        x_ND = self.embedding.index_select(0, tokens)
        for index, layer in enumerate(self.layers):
            mixed = (self._normed(x_ND) @ layer.qkv).view(len(x_ND), -1, self.size)  # [N, H + 2 K, E]
            turning = mixed[:, : self.turning]
            if layer.heads is not None:
                turning = self._normed(turning) * layer.heads
            turned = torch.addcmul(turning * cos, turning.roll(self.size // 2, -1), sin)
            x_ND.addmm_(self._attended(index, turned, mixed[:, self.turning :]), layer.out)
            gate, up = (self._normed(x_ND) @ layer.gate_up).chunk(2, dim=1)
            x_ND.addmm_(F.silu(gate).mul_(up), layer.down)
        return self._normed(x_ND) @ self.output

    def _attended(self, index: int, turned: Tensor, value: Tensor) -> Tensor:
        """[N, H E] what the new token sees. turned: its queries and keys [N, H + K, E], value [N, K, E]."""
        query, key = turned[:, : -self.key_heads], turned[:, -self.key_heads :]
        cached = self.cache.layers[index].update(key[:, :, None], value[:, :, None])
        keys, values = (x.flatten(0, 1) for x in cached)  # [N K, length, E]
        query = query.reshape(len(keys), -1, self.size)  # [N K, H / K, E]
        mask = query.new_zeros(1) if self.mask is None else self.mask[: self.slots].flatten(0, 1)[..., : self.length]
        scores = torch.baddbmm(mask, query, keys.mT, alpha=self.size**-0.5)
        return (scores.softmax(-1) @ values).view(len(turned), -1)

    def _normed(self, x: Tensor) -> Tensor:
        """x divided by its root mean square over the last axis."""
        return x * torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(self.eps).rsqrt_()[..., None]

    def _open_mask(self, real: Tensor) -> Tensor | None:
        if real.all():
            return None
        seen = torch.cat((real, real.new_ones(len(real), self.max_tokens)), dim=1)
        return additive(seen, torch.float32)[:, None, None].repeat(1, self.key_heads, 1, 1)
