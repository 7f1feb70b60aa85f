"""The conservative penalty on action values: a soft maximum over all actions, less the value of the one taken."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def conservative_penalty(q_NK: Tensor, logp_NK: Tensor, taken_N: Tensor, *, temperature: float) -> Tensor:
    """How far the soft maximum of the action values is above the value of the action taken.

    q_NK         [..., K] float  values of K candidate actions
    logp_NK      [..., K] float  log-probabilities under which they were drawn, nats
    taken_N      [...] float     value of the action taken
    temperature  > 0; towards 0 the soft maximum becomes the maximum
    returns      [...] float     temperature * log((1/K) sum_k exp(q_k / temperature - logp_k)) - taken

    The soft maximum over *all* actions, by importance sampling: consistent as K grows, too low on average for small K,
    so the penalty can be negative. With every action once and logp = -log K it is exact; then it is the cross-entropy
    of softmax(q / temperature) against the action taken, at least 0. Adding a constant to all values changes nothing.
    Kumar et al. 2020 (arXiv:2006.04779), CQL(H).
    """
    weights_NK = q_NK / temperature - logp_NK
    soft_maximum_N = torch.logsumexp(weights_NK, dim=-1) - math.log(q_NK.shape[-1])
    return temperature * soft_maximum_N - taken_N
