"""The last hidden states of decoders whose arithmetic is known exactly: Qwen3 and Llama in float32 on a CPU.

What it saves over Hugging Face's modules: tokens that rows have in common from their start, as the samples of a prompt
do, are computed once; nothing is padded but in attention; the projections of a layer are one product, norm weights
folded into them; norms, rotary positions and gates pass over memory once (`trunk_kernels`), with gradients in closed
form. These are the sums of the modules in another order: states and gradients differ from theirs by float rounding
alone. A model that deviates in anything keeps its own forward pass (`trainable`). Taking few rows at a time, for the
sake of the processor's cache, was slower than all at once.

Axes: N distinct tokens, B rows of S columns, R of them attended to, C = H + 2 K query, key and value heads of size E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from noisyrl.known import known, layers, rotary
from noisyrl.processor import each_row


def trainable(backbone: nn.Module) -> bool:
    """Whether `hidden_states` computes what this backbone does: it is known, and autocast does not want 16 bits."""
    return known(backbone) and not torch.is_autocast_enabled("cpu")


def hidden_states(backbone: Any, tokens_BS: Tensor, size_B: Tensor) -> tuple[Tensor, Tensor]:
    """Last hidden states of the first size_B tokens of each row; a backbone that is `trainable`.

    tokens_BS  int64, not read beyond size_B
    returns    the states of all distinct tokens [N, D], and the number [B, S] of each token among them
    """
    merged, number_BS = _merged(tokens_BS, size_B)
    return states(backbone, merged), number_BS


def states(backbone: Any, merged: Merged) -> Tensor:
    """Last hidden states of distinct tokens [N, D]."""
    config = backbone.config
    heads, eps = (config.num_attention_heads, config.num_key_value_heads), config.rms_norm_eps
    cos_SE, sin_SE = rotary(backbone, merged.number_RS.shape[1])
    turn = cos_SE[merged.position_N], sin_SE[merged.position_N]
    x_ND = backbone.embed_tokens(merged.token_N)
    for layer in layers(backbone):
        mixed_NCE = (_Normed.apply(x_ND, eps) @ layer.qkv).unflatten(1, (-1, cos_SE.shape[1]))
        x_ND = torch.addmm(x_ND, _attended(mixed_NCE, merged, heads, layer.heads, turn, eps), layer.out)
        x_ND = torch.addmm(x_ND, _Gated.apply(_Normed.apply(x_ND, eps) @ layer.gate_up), layer.down)
    return _Normed.apply(x_ND, eps) * backbone.norm.weight


class Merged(NamedTuple):
    """The distinct tokens of some rows: two are one where they and all before them are the same."""

    number_RS: Tensor  # which of the N each token is, 0 beyond a row's end; of rows with which no other begins
    token_N: Tensor
    position_N: Tensor
    place_N: Tensor  # in [R * S], of one of its occurrences


def _merged(tokens_BS: Tensor, size_B: Tensor) -> tuple[Merged, Tensor]:
    """The distinct tokens, and the number [B, S] of each token. Sorted, rows share the most with their neighbours."""
    tokens, size = tokens_BS.numpy(), size_B.numpy()
    order_B = np.array(sorted(range(len(tokens)), key=lambda row: tokens[row, : size[row]].tolist()))
    tokens, size = tokens[order_B], size[order_B]
    real = np.arange(tokens.shape[1]) < size[:, None]
    shared = np.zeros_like(real)  # with the row above
    shared[1:] = np.logical_and.accumulate((tokens[1:] == tokens[:-1]) & real[1:] & real[:-1], axis=1)
    new = real & ~shared
    # Numbers grow from row to row, so the largest above a shared token is that of the row it is shared with.
    number = np.maximum.accumulate(np.where(new, new.cumsum().reshape(new.shape) - 1, 0), axis=0)
    number_BS, number = np.empty_like(number), np.where(real, number, 0)
    number_BS[order_B] = number
    row_N, position_N = new.nonzero()
    needed = np.append(shared[1:].sum(axis=1) < size[:-1], True)  # the row below does not begin with all of this one
    first_B = needed.cumsum() - needed  # of the needed rows, the first from here on
    found = number[needed], tokens[new], position_N, first_B[row_N] * tokens.shape[1] + position_N
    return Merged(*map(torch.from_numpy, found)), torch.from_numpy(number_BS)


def _attended(  # noqa: PLR0913 - all that attention needs to know
    mixed_NCE: Tensor,
    merged: Merged,
    heads: tuple[int, int],
    weight_TE: Tensor | None,
    turn: tuple[Tensor, Tensor],
    eps: float,
) -> Tensor:
    """[N, H E] what each token sees, from queries, keys and values of all."""
    query, key, value = _Turned.apply(mixed_NCE, weight_TE, turn, eps, heads, merged.number_RS)
    seen_RHSE = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return seen_RHSE.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, merged.place_N)


def _each_row(kernel: Callable[..., None], rows: int, *args: Any, least: int = 64) -> None:
    """`each_row`, on tensors that have contents: those by which memory is planned have shapes alone."""
    if not isinstance(args[0], FakeTensor):
        each_row(kernel, rows, *args, least=least)


class _Normed(torch.autograd.Function):
    """x [N, D] over its root mean square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        from noisyrl import trunk_kernels  # which takes .2 s

        normed, scale = torch.empty_like(x), x.new_empty(len(x))
        _each_row(trunk_kernels.normed, len(x), x, eps, normed, scale)
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from noisyrl import trunk_kernels

        normed, scale = ctx.saved_tensors
        out = torch.empty_like(normed)
        _each_row(trunk_kernels.normed_back, len(out), grad.contiguous(), normed, scale, out)
        return out, None


class _Turned(torch.autograd.Function):
    """Queries, keys and values [R, H or K, S, E] of tokens in rows, from the heads [N, C, E] of the distinct tokens.

    Queries and keys are turned by their positions, after a norm if it has weights [H + K, E].
    """

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        mixed: Tensor,
        weight: Tensor | None,
        turn: tuple[Tensor, Tensor],
        eps: float,
        heads: tuple[int, int],
        number: Tensor,
    ) -> tuple[Tensor, ...]:
        from noisyrl import trunk_kernels

        ctx.norm = weight is not None
        weight = mixed.new_ones(sum(heads), mixed.shape[2]) if weight is None else weight
        out, scale = torch.empty_like(mixed), mixed.new_empty(len(mixed), len(weight))
        _each_row(trunk_kernels.turned, len(mixed), mixed, weight, *turn, ctx.norm, eps, out, scale)
        ctx.save_for_backward(mixed, weight, *turn, scale, number)
        rows = F.embedding(number, out.flatten(1)).unflatten(2, mixed.shape[1:])
        return rows.transpose(1, 2).split((*heads, heads[1]), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from noisyrl import trunk_kernels

        mixed, weight, cos, sin, scale, number = ctx.saved_tensors
        out = torch.zeros_like(mixed)
        first = 0
        for grad in grads:
            heads = grad.shape[1]
            rows = grad.transpose(1, 2).contiguous()
            _each_row(trunk_kernels.added, heads, number, rows, first, out, least=1)
            first += heads
        blocks = -(-len(mixed) // trunk_kernels.BLOCK)
        weight_grad = weight.new_zeros(blocks, *weight.shape)
        args = (out, mixed, scale, weight, cos, sin, ctx.norm, weight_grad)
        _each_row(trunk_kernels.turned_back, blocks, *args, least=1)
        return out, weight_grad.sum(dim=0) if ctx.norm else None, None, None, None, None


class _Gated(torch.autograd.Function):
    """silu(gate) * up [N, I] of both side by side [N, 2 I]."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        from noisyrl import trunk_kernels

        (both,) = ctx.saved_tensors
        out = torch.empty_like(both)
        share = torch.sigmoid(both.chunk(2, dim=1)[0])
        _each_row(trunk_kernels.gated_back, len(both), grad.contiguous(), both, share, out)
        return out
