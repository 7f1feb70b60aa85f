"""One token per row through decoders whose arithmetic is known exactly: Qwen3 and Llama in float32 on a CPU.

At one token per row Hugging Face's modules cost more than the matrix products in them. Here the projections of a layer
are joined and laid out for the product once per batch, norm weights folded into them; the rotary table is computed
once; a compiled loop takes a row's queries to the keys it sees (`kernels`). These are the sums of the modules in
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
from noisyrl.rollout.forward import Forward


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
        self.queries, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = core.layers[0].self_attn.head_dim
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
        x_ND = self.embedding.index_select(0, tokens)
        for index, layer in enumerate(self.layers):
            mixed = (self._normed(x_ND) @ layer.qkv).view(len(x_ND), -1, self.size)  # [N, H + 2 K, E]
            x_ND.addmm_(self._attended(index, mixed, layer.heads), layer.out)
            gate, up = (self._normed(x_ND) @ layer.gate_up).chunk(2, dim=1)
            x_ND.addmm_(F.silu(gate).mul_(up), layer.down)
        return self._normed(x_ND) @ self.output

    def _attended(self, index: int, mixed: Tensor, heads: Tensor | None) -> Tensor:
        """[N, H E] what the new token sees. mixed: its queries, keys and values [N, H + 2 K, E]; heads: see `Layer`."""
        from noisyrl.rollout import kernels  # which takes .2 s

        cache = self.cache.layers[index]
        _, values = cache.extend(1)
        heads = mixed.new_empty(0, self.size) if heads is None else heads
        scores = mixed.new_empty(len(mixed), self.queries, self.length)
        rotary_of_rows = self.position, self.cos, self.sin
        each_row(kernels.ask, len(mixed), mixed, heads, self.eps, *rotary_of_rows, cache.keys, cache.values, scores)
        weights = scores.softmax(-1).view(len(mixed) * self.key_heads, -1, self.length)
        return (weights @ values.flatten(0, 1)).view(len(mixed), -1)

    def _normed(self, x: Tensor) -> Tensor:
        """x divided by its root mean square over the last axis."""
        return x * torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(self.eps).rsqrt_()[..., None]

    def _open_mask(self, real: Tensor) -> None:
        """None: positions tell where a row begins."""
