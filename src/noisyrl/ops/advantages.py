"""Advantages, value targets and robust bootstraps: pure tensor maths, no gradient kept, no algorithm named."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisyrl.ops.masked import keep, last_index
from noisyrl.ops.risk import ascending, tail_weights
from noisyrl.processor import each_row, takes_kernels


@torch.no_grad()
def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Advantage of each response token.

    reward_BT  [B, T] float   paid when token t is emitted
    value_BT   [B, T] float   estimate before token t
    mask_BT    [B, T] bool    policy tokens; holes are skipped, padding is last
    returns    [B, T] float   0 where mask_BT is False

    Schulman et al. 2016 (arXiv:1506.02438) eq. 16; the value after the last real token is 0. A hole (the user's turn)
    carries value and trace across, so the two policy tokens around it are neighbours; projects differ here.
    ValueError: a row has no real token; shapes differ.
    """
    return gae_with_bootstrap(reward_BT, value_BT, value_BT, mask_BT, gamma=gamma, lam=lam)


@torch.no_grad()
def gae_with_bootstrap(
    reward_BT: Tensor, value_BT: Tensor, bootstrap_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Advantage of each response token where a state is worth one thing now and another when it comes next.

    reward_BT     [B, T] float   paid when token t is emitted
    value_BT      [B, T] float   estimate before token t, subtracted there
    bootstrap_BT  [B, T] float   (robust) estimate before token t, read by the policy token before it
    mask_BT       [B, T] bool    policy tokens; holes are skipped, padding is last
    lam           the trace decays by gamma * lam a token; contamination by rho is a discount of gamma * (1 - rho), so
                  its consistent trace is lam * (1 - rho)
    returns       [B, T] float   0 where mask_BT is False

    Error of a token: reward + gamma * bootstrap of the next policy token - value. `gae` is the case bootstrap = value.
    ValueError: a row has no real token; shapes differ.
    """
    _check(mask_BT, reward=reward_BT, value=value_BT, bootstrap=bootstrap_BT)
    return _errors_backwards(reward_BT, value_BT, bootstrap_BT, mask_BT, gamma, gamma * lam)


@torch.no_grad()
def distributional_gae(
    reward_BT: Tensor, quantiles_BTM: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Advantage of each response token for each quantile, equal indices paired across time (comonotone coupling).

    reward_BT      [B, T] float      paid when token t is emitted
    quantiles_BTM  [B, T, M] float   quantiles of the return before token t, not sorted here
    mask_BT        [B, T] bool       policy tokens; holes are skipped, padding is last
    returns        [B, T, M] float   0 where mask_BT is False; the mean over M is `gae` of the mean over M

    DVPO (arXiv:2512.03847) eq. 2. quantiles + advantage is the comonotone target: for 0 < lam < 1 its mean is right and
    its spread too small, since each atom averages a bootstrapped quantile with the sampled return. `mixture_target`
    keeps the spread. ValueError: a row has no real token; shapes differ.
    """
    _check(mask_BT, reward=reward_BT, quantiles=quantiles_BTM)
    return _errors_backwards(reward_BT[..., None], quantiles_BTM, quantiles_BTM, mask_BT[..., None], gamma, gamma * lam)


@torch.no_grad()
def mixture_target(reward_BT: Tensor, quantiles_BTM: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Quantiles of the distributional lambda-return of each response token.

    reward_BT      [B, T] float      paid when token t is emitted
    quantiles_BTM  [B, T, M] float   quantiles of the return before token t, in any order
    mask_BT        [B, T] bool       policy tokens; holes are skipped, padding is last
    gamma, lam     both in [0, 1]; lam 0 gives reward + gamma * next quantiles, lam 1 the return, M times
    returns        [B, T, M] float   sorted; 0 where mask_BT is False; the mean over M is the scalar lambda-return

    The target of a token is the law of reward + gamma * X, where X is drawn from the next quantiles with probability
    1 - lam and from the next target with probability lam; after the last real token both are 0. M atoms stand for it,
    atom j the mean of its quantile function over ((j - 1) / M, j / M]: that keeps the mean, which midpoints do not. It
    blurs jumps at every token: a fair coin 50 tokens away has std .492 for M = 200, .467 for M = 50, in place of .5.
    Computed in float64. Nam et al. 2021 (arXiv:2105.11366), SR(lambda). ValueError: lam outside [0, 1]; a row has no
    real token; shapes differ.
    """
    _check(mask_BT, reward=reward_BT, quantiles=quantiles_BTM)
    if not 0 <= lam <= 1:
        raise ValueError(f"lam is {lam}: it is a probability here, set it in [0, 1]")
    if not takes_kernels(reward_BT, quantiles_BTM):
        return _mixture_target(reward_BT, ascending(quantiles_BTM), mask_BT, gamma, lam)
    from noisyrl.ops import kernels  # .2 s, which runs that never come here need not pay

    out_BTM = quantiles_BTM.new_zeros(quantiles_BTM.shape)
    inputs = (x.contiguous() for x in (reward_BT, quantiles_BTM, mask_BT))
    each_row(kernels.mixture_target, len(mask_BT), *inputs, float(gamma), float(lam), out_BTM, least=4)
    return out_BTM


@torch.no_grad()
def robust_gae(
    reward_BT: Tensor, heads_BTH: Tensor, mask_BT: Tensor, *, gamma: float, lam: float, rho: float
) -> Tensor:
    """Advantage of each response token where the next state is worth less than the heads' mean, towards their least.

    reward_BT  [B, T] float      paid when token t is emitted
    heads_BTH  [B, T, H] float   each head's estimate before token t
    mask_BT    [B, T] bool       policy tokens; holes are skipped, padding is last
    rho        0 = `gae` of the heads' mean, bit for bit, and so is any rho with one head; 1 = the least head alone
    returns    [B, T] float      0 where mask_BT is False

    ValueError: a row has no real token; shapes differ.
    """
    _check(mask_BT, reward=reward_BT, heads=heads_BTH)
    value_BT = heads_BTH.mean(dim=-1)
    bootstrap_BT = contamination_bootstrap(value_BT, rho=rho, worst=heads_BTH.amin(dim=-1))
    return gae_with_bootstrap(reward_BT, value_BT, bootstrap_BT, mask_BT, gamma=gamma, lam=lam)


@torch.no_grad()
def contamination_bootstrap(value_BT: Tensor, *, rho: float, worst: float | Tensor) -> Tensor:
    """The value if, with probability rho, the worst case happens instead.

    value_BT  [B, T] float
    worst     what the worst case is worth: the lowest reward, or a [B, T] such as the least of several heads
    returns   [B, T] float   exactly value_BT at rho 0 and where worst equals it

    Wang and Zou 2021 (arXiv:2109.14523), R-contamination.
    """
    return value_BT + rho * (worst - value_BT)


@torch.no_grad()
def tv_bootstrap(quantiles_BTM: Tensor, *, rho: float, fail_value: float | Tensor) -> Tensor:
    """The least mean within total variation rho of a law of returns, if the adversary may send mass to a fail state.

    quantiles_BTM  [B, T, M] float   equally likely atoms, in any order
    rho            in [0, 1]; 0 = the mean, bit for bit; 1 = fail_value
    fail_value     what the fail state is worth, at most the least atom (or a [B, T] of it)
    returns        [B, T] float      (1 - rho) * mean of the lowest 1 - rho of the mass + rho * fail_value

    The adversary moves the best rho of the mass. Closed form of max over eta of (1 - rho) * eta - E[(eta - Z)+], for
    fail_value 0: Panaganti et al. 2022 (arXiv:2208.05129). ValueError: rho outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho is {rho}: it is a share of the probability mass, set it in [0, 1]")
    value_BT = quantiles_BTM.mean(dim=-1)
    if rho == 0:
        return value_BT
    weight_M = tail_weights(
        quantiles_BTM.shape[-1], rho, upper=True, dtype=quantiles_BTM.dtype, device=quantiles_BTM.device
    )
    best_BT = (weight_M * quantiles_BTM.sort(dim=-1).values).sum(dim=-1)
    return value_BT + rho * (fail_value - best_BT)


def token_rho(rho_sequence: float, max_tokens: int) -> float:
    """The rho per token that compounds to rho_sequence: 1 - (1 - rho_sequence)^(1 / max_tokens).

    A rho per token is a discount: .01 over 1000 tokens leaves 4e-5 of the final reward.
    ValueError: rho_sequence outside [0, 1]; max_tokens below 1.
    """
    if not 0 <= rho_sequence <= 1 or max_tokens < 1:
        raise ValueError(f"rho_sequence {rho_sequence} must be in [0, 1] and max_tokens {max_tokens} at least 1")
    return 1.0 if rho_sequence == 1 else -math.expm1(math.log1p(-rho_sequence) / max_tokens)


@torch.no_grad()
def group_relative(reward_B: Tensor, group_B: Tensor, *, standardise: bool, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """Advantage of each response against the other responses to its prompt.

    reward_B     [B] float
    group_B      [B] int64   rows with the same number answer the same prompt, in any order
    standardise  divide by the group's standard deviation (ddof as in torch.std) plus eps
    returns      [B] float   a group of one row gets 0; equal rewards get exactly 0

    Shao et al. 2024 (arXiv:2402.03300) section 4.1.2 with `standardise`, Liu et al. 2025 (arXiv:2503.20783) without.
    """
    _, member_B = torch.unique(group_B, return_inverse=True)
    groups = int(member_B.max()) + 1 if member_B.numel() else 0

    def total(x_B: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=x_B.dtype, device=x_B.device).index_add(0, member_B, x_B)

    count_G = total(torch.ones_like(reward_B))
    # Rewards are shifted by the group's smallest first: equal rewards then centre to exactly 0.
    least_G = torch.zeros_like(count_G).scatter_reduce(0, member_B, reward_B, "amin", include_self=False)
    shifted_B = reward_B - least_G[member_B]
    centred_B = shifted_B - (total(shifted_B) / count_G)[member_B]
    if not standardise:
        return centred_B
    variance_G = total(centred_B.square()) / (count_G - ddof).clamp(min=1)
    return centred_B / (variance_G.sqrt()[member_B] + eps)


def _check(mask_BT: Tensor, **tensors: Tensor) -> None:
    last_index(mask_BT)
    for name, x in tensors.items():
        if x.shape[:2] != mask_BT.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, the mask {tuple(mask_BT.shape)}: B and T must agree")


def _errors_backwards(
    reward: Tensor, value: Tensor, bootstrap: Tensor, mask: Tensor, gamma: float, decay: float
) -> Tensor:
    """Sum of decay^k times the error k tokens ahead; [B, T], or [B, T, M] with reward and mask [B, T, 1]."""
    reward, value, bootstrap = keep(reward, mask), keep(value, mask), keep(bootstrap, mask)
    advantage = torch.zeros_like(value)
    after = torch.zeros_like(value[:, 0])
    trace = torch.zeros_like(after)
    for t in range(value.shape[1] - 1, -1, -1):
        real = mask[:, t]
        delta = reward[:, t] + gamma * after - value[:, t]
        trace = torch.where(real, delta + decay * trace, trace)
        after = torch.where(real, bootstrap[:, t], after)
        advantage[:, t] = torch.where(real, trace, 0.0)
    return advantage


def _mixture_target(reward_BT: Tensor, sorted_BTM: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> Tensor:
    out_BTM = torch.zeros_like(sorted_BTM)
    next_BM = torch.zeros_like(sorted_BTM[:, 0], dtype=torch.float64)
    target_BM = torch.zeros_like(next_BM)
    for t in range(out_BTM.shape[1] - 1, -1, -1):
        real_N = mask_BT[:, t].nonzero().squeeze(1)  # the others carry what they have across
        target_NM = _mixture_quantiles(next_BM[real_N], target_BM[real_N], lam)
        target_NM = ascending(reward_BT[real_N, t, None] + gamma * target_NM)  # rounding may have swapped equal atoms
        target_BM[real_N], out_BTM[real_N, t] = target_NM, target_NM.to(out_BTM.dtype)
        next_BM[real_N] = sorted_BTM[real_N, t].double()
    return out_BTM


def _mixture_quantiles(first_BM: Tensor, second_BM: Tensor, second_frac: float) -> Tensor:
    """Bin averages of the quantile function of (1 - second_frac) * first + second_frac * second, both sorted float64.

    The atoms of both in order, with what each of them is long when a bin is 1, fill M bins. Sums up to the inner edges
    E = M - 1 between bins give what each holds.
    """
    if second_frac in (0, 1):
        return second_BM if second_frac else first_BM
    count = first_BM.shape[-1]
    atom_BA, order_BA = torch.cat([first_BM, second_BM], dim=-1).sort(dim=-1)
    size_BA = atom_BA.new_tensor([1 - second_frac, second_frac])[order_BA // count]
    end_BA, sum_BA = size_BA.cumsum(dim=-1), (size_BA * atom_BA).cumsum(dim=-1)
    edge_BE = torch.arange(1, count, dtype=atom_BA.dtype, device=atom_BA.device).expand(len(atom_BA), -1).contiguous()
    at_BE = torch.searchsorted(end_BA, edge_BE).clamp(max=2 * count - 1)  # the atom that reaches over the edge
    past_BE = end_BA.gather(-1, at_BE) - edge_BE
    left_BE = sum_BA.gather(-1, at_BE) - past_BE * atom_BA.gather(-1, at_BE)
    return torch.diff(left_BE, prepend=torch.zeros_like(sum_BA[:, :1]), append=sum_BA[:, -1:])
