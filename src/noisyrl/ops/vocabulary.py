"""What a distribution over the vocabulary says, from the hidden states it is made of.

Logits of all positions never exist together: only those of one chunk do, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Elements of one logits chunk: 64 MiB in float32, whatever the vocabulary.
CHUNK_ELEMENTS = 2**24


class OutputLayer(Protocol):
    """Hidden states [N, D] to logits [N, V]; `weight` is [V, D]."""

    @property
    def weight(self) -> Tensor: ...

    def __call__(self, hidden_ND: Tensor, /) -> Tensor: ...


def at_least_single(x: Tensor) -> Tensor:
    """bf16 and fp16 as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_scores(
    hidden_ND: Tensor,
    target_N: Tensor,
    head: OutputLayer,
    *,
    temperature: float = 1.0,
    elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token, and entropy of the distribution it is drawn from, in nats.

    hidden_ND  [N, D] float
    target_N   [N] int64
    head       the output layer; its logits are divided by `temperature`
    elements   most logits at a time; changes no result
    returns    [N], [N], at least float32
    """

    def score(hidden_ND: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        logp_NV = torch.log_softmax(at_least_single(head(hidden_ND)) / temperature, dim=-1)
        logp_N = logp_NV.gather(1, target_N[:, None]).squeeze(1)
        return logp_N, -(logp_NV.exp() * logp_NV).sum(dim=-1)

    logp_N, entropy_N = _in_chunks(score, (hidden_ND, target_N), elements // head.weight.shape[0])
    return logp_N, entropy_N


def distribution_kl(
    reference_ND: Tensor, hidden_ND: Tensor, head: OutputLayer, *, elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """KL(p_reference || p_hidden) in nats between two distributions of one output layer.

    reference_ND  [N, D] float   states of the distribution that is the measure
    hidden_ND     [N, D] float   states of the one that is judged
    returns       [N] at least float32, at least 0 up to rounding; 0 for equal states
    """

    def kl(reference_ND: Tensor, hidden_ND: Tensor) -> tuple[Tensor]:
        wanted_NV = torch.log_softmax(at_least_single(head(reference_ND)), dim=-1)
        found_NV = torch.log_softmax(at_least_single(head(hidden_ND)), dim=-1)
        return ((wanted_NV.exp() * (wanted_NV - found_NV)).sum(dim=-1),)

    # Two matrices of logits live at a time.
    return _in_chunks(kl, (reference_ND, hidden_ND), elements // (2 * head.weight.shape[0]))[0]


def _in_chunks(
    function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], chunk: int
) -> tuple[Tensor, ...]:
    """`function` of [N, ...] tensors, `chunk` rows (at least 1) at a time; recomputed in the backward pass."""
    count, chunk = len(inputs[0]), max(1, chunk)
    if count <= chunk:
        return function(*inputs)
    parts = [
        checkpoint(function, *(x[i : i + chunk] for x in inputs), use_reentrant=False) for i in range(0, count, chunk)
    ]
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
