"""The clipped policy objective, the clipped value error and the KL estimators."""

from __future__ import annotations

import torch
from torch import Tensor

_LOG_RATIO_LIMIT = 20.0  # exp(20) is 4.9e8: beyond it the ratio says nothing and float32 overflows soon after


def log_ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    """logp - old_logp, clamped to +-20."""
    return (logp - old_logp).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)


def clipped_surrogate(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantage_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """Loss per token, to be minimised: -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A).

    logp_BT       [B, T] float   under the policy being trained
    old_logp_BT   [B, T] float   under the policy that sampled
    advantage_BT  [B, T] float
    dual_clip     c > 1 bounds the loss by -c * A where A < 0 (Ye et al. 2020, arXiv:1912.09729); None = off
    returns       [B, T] float

    Schulman et al. 2017 (arXiv:1707.06347) eq. 7.
    """
    ratio_BT = log_ratio(logp_BT, old_logp_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    loss_BT = -torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    if dual_clip is None:
        return loss_BT
    return torch.where(advantage_BT < 0, torch.minimum(loss_BT, -dual_clip * advantage_BT), loss_BT)


def value_error(value: Tensor, old_value: Tensor, target: Tensor, *, clip: float | None) -> Tensor:
    """Half the squared error to the target, elementwise; shapes broadcast.

    clip  the larger of the error of `value` and that of `value` held within clip of `old_value`; None = off

    Schulman et al. 2017's code (Engstrom et al. 2020, arXiv:2005.12729 section 3).
    """
    error = (value - target).square()
    if clip is not None:
        clipped = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - target).square())
    return 0.5 * error


def kl_estimate(logp: Tensor, ref_logp: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(policy || reference) in nats from tokens sampled by the policy, same shape as `logp`.

    k1   d = logp - ref_logp. Unbiased; as a loss its expected gradient is 0, so use it in the reward only.
    k2   d^2 / 2. Biased value; as a loss its expected gradient is that of KL(policy || reference).
    k3   exp(-d) - 1 + d. Unbiased, never negative; as a loss its gradient is that of KL(reference || policy).
    k3+  the value of k3 with the gradient of k2.

    Schulman 2020, "Approximating KL divergence". ValueError: another name.
    """
    d = log_ratio(logp, ref_logp)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d.square()
    if estimator == "k3":
        return torch.expm1(-d) + d
    if estimator == "k3+":
        k2 = 0.5 * d.square()
        return k2 + (torch.expm1(-d) + d - k2).detach()
    raise ValueError(f"kl estimator {estimator!r} is unknown: use k1, k2, k3 or k3+")
