"""Transformers whose arithmetic is known exactly, Qwen3 and Llama in float32 on a CPU: which they are, their weights.

`trunk` trains them and `rollout.decoder` samples from them without Hugging Face's modules. A model that deviates in
anything from what was read keeps its own forward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

_PARTS = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
_MODULES = {nn.Embedding, nn.Linear, nn.ModuleList, SiLUActivation}
# Class of a causal LM or of its backbone -> the classes it may be made of.
_FAMILIES = {
    getattr(source, family + part): _MODULES | {getattr(source, family + other) for other in _PARTS}
    for source, family in ((modeling_llama, "Llama"), (modeling_qwen3, "Qwen3"))
    for part in ("ForCausalLM", "Model")
}


def known(model: nn.Module, *, training: bool = False) -> bool:
    """Whether every part and every option of a causal LM, or of its backbone, is one that was read.

    training  parts may be in training mode, in which they drop out or recompute activations
    """
    if type(model) not in _FAMILIES:
        return False
    config: Any = model.config
    return (
        all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters())
        and all(_plain(part, _FAMILIES[type(model)], training) for part in model.modules())
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and config.rope_parameters["rope_type"] == "default"
    )


def _plain(part: nn.Module, allowed: set[type], training: bool) -> bool:
    """Neither of another class (adapters, quantised or sharded layers) nor hooked, patched or biased."""
    hooked = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    biased = getattr(part, "bias", None) is not None
    return type(part) in allowed and not (hooked or biased) and (training or not part.training)


class Layer(NamedTuple):
    """Weights of one layer: matrices [in, out], the norm before a product folded in."""

    qkv: Tensor  # [D, (H + 2 K) E]: H query heads, K key heads, K value heads of size E
    heads: Tensor | None  # [H + K, E], weights of the norm of queries and keys; None = no such norm
    out: Tensor  # [H E, D]
    gate_up: Tensor  # [D, 2 I]
    down: Tensor  # [I, D]


def layers(backbone: Any) -> list[Layer]:
    """The weights of each layer; gradients reach the model's own."""
    config = backbone.config
    return [_read(layer, config.num_attention_heads, config.num_key_value_heads) for layer in backbone.layers]


def _read(layer: Any, queries: int, keys: int) -> Layer:
    attention, mlp, heads = layer.self_attn, layer.mlp, None
    if hasattr(attention, "q_norm"):
        heads = torch.stack([attention.q_norm.weight] * queries + [attention.k_norm.weight] * keys)
    return Layer(
        qkv=joined(attention.q_proj, attention.k_proj, attention.v_proj, after=layer.input_layernorm),
        heads=heads,
        out=joined(attention.o_proj),
        gate_up=joined(mlp.gate_proj, mlp.up_proj, after=layer.post_attention_layernorm),
        down=joined(mlp.down_proj),
    )


def joined(*projections: Any, after: Any = None) -> Tensor:
    """[in, out] of linear layers side by side, which read what the norm `after` gives."""
    weight = projections[0].weight
    if len(projections) > 1:
        weight = torch.cat([projection.weight for projection in projections])
    return (weight if after is None else weight * after.weight).t()


def rotary(backbone: Any, length: int) -> tuple[Tensor, Tensor]:
    """[length, E] each: x turned is x cos + x' sin, x' being x with its halves swapped; the sign of one is in sin."""
    cos, sin = backbone.rotary_emb(backbone.embed_tokens.weight, torch.arange(length)[None])
    sin = sin.clone()
    sin[..., : sin.shape[-1] // 2].neg_()
    return cos[0], sin[0]
