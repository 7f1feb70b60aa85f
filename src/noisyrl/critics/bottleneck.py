"""A value through a noisy latent, and what a frozen LM head reads in the states the value is made of.

Z is the size of the latent, N the policy tokens of all rows: nothing is computed for the rest of [B, T].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from noisyrl import rng
from noisyrl.critics.base import CriticSpec, Head, Sight, States, policy_tokens
from noisyrl.critics.values import BottleneckValue
from noisyrl.ops.masked import place
from noisyrl.ops.vocabulary import distribution_kl, token_scores
from noisyrl.spec import Count, InputError, Positive, spec
from noisyrl.types import Rollout, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG_VARIANCE = (-8.0, 4.0)  # beyond it, dimensions whose noise is all there is, or none at all
_MEAN_SD = 0.03  # of the latent's mean at the start, for states of unit size: 0.0005 nats per dimension


@spec
class BottleneckCritic(CriticSpec):
    """The critic of VRPO (arXiv:2508.03058); the layers follow the variational bottleneck of arXiv:1612.00410."""

    latent: Count = 256
    """Z, size of the latent, and of the hidden layer that reads it."""
    deterministic: bool = False
    """true = the latent has no noise (sigma is 0), so there is no bottleneck: an ablation."""
    noiseless: Literal["expectation", "latent_mean"] = "expectation"
    """The value of a rollout, on which advantages and the clip range rest. expectation = the exact mean over the noise;
    latent_mean = the value of the latent's mean, as is usual for bottlenecks, which the curvature of GELU biases."""
    lm_head: Literal["none", "self", "align"] = "self"
    """What the starting policy's output layer, frozen, reads in the critic's states. self = entropy and surprise;
    align = these, and the KL from the starting policy's own distribution; none = nothing, it is not kept."""
    init_sd: Positive = 0.01
    """Standard deviation of the last layer's initial weights."""

    def make(self, hidden_size: int, *, seed: int = 0, lm: PreTrainedModel | None = None) -> Head:
        """InputError: the LM head is to be read and there is no `lm`."""
        if self.lm_head == "none":
            return _Bottleneck(hidden_size, self, seed=seed, output=None)
        if lm is None:
            raise InputError(f"critic.lm_head={self.lm_head} needs the starting policy: set lm_head=none without one")
        return _Bottleneck(hidden_size, self, seed=seed, output=_FrozenLayer(lm.get_output_embeddings()))


class _Bottleneck(Head):
    def __init__(self, hidden_size: int, config: BottleneckCritic, *, seed: int, output: _FrozenLayer | None) -> None:
        super().__init__()
        self.deterministic = config.deterministic
        self.exact = config.noiseless == "expectation" and not config.deterministic
        self.output = output
        self.reads_reference = config.lm_head == "align"
        size = config.latent
        self.mean = nn.Linear(hidden_size, size)
        self.log_variance = nn.Linear(hidden_size, size)
        self.inner, self.outer = nn.Linear(size, size), nn.Linear(size, 1)
        source = rng.torch_generator("critic", seed)
        # The latent starts as the standard normal it is measured against, whatever the state: the KL starts near 0.
        nn.init.normal_(self.mean.weight, std=_MEAN_SD * hidden_size**-0.5, generator=source)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.normal_(self.inner.weight, std=size**-0.5, generator=source)
        nn.init.normal_(self.outer.weight, std=config.init_sd, generator=source)
        for layer in (self.mean, self.log_variance, self.inner, self.outer):
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_BTD: Tensor, sight: Sight | None = None) -> BottleneckValue:
        """Without `sight` there is no mask, no noise, and nothing for the LM head to judge."""
        mask_BT = policy_tokens(hidden_BTD, sight)
        return self._of_tokens(hidden_BTD[mask_BT], mask_BT, sight)

    def of_states(self, states: States, sight: Sight) -> BottleneckValue:
        return self._of_tokens(states.each_ND, sight.rollout.mask_BT, sight)

    def _of_tokens(self, hidden_ND: Tensor, mask_BT: Tensor, sight: Sight | None) -> BottleneckValue:
        found = self._estimates(hidden_ND, sight) | self._reading(hidden_ND, sight)
        return BottleneckValue(**{f"{name}_BT": place(x_N, mask_BT) for name, x_N in found.items()})

    def _estimates(self, hidden_ND: Tensor, sight: Sight | None) -> dict[str, Tensor]:
        # Never in bf16: it cannot tell values closer than half a per cent.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_ND = hidden_ND.to(self.mean.weight.dtype)
            mean_NZ, log_variance_NZ = self.mean(hidden_ND), self.log_variance(hidden_ND).clamp(*_LOG_VARIANCE)
            value_N = sampled_N = self._expected(mean_NZ, log_variance_NZ) if self.exact else self._value(mean_NZ)
            if sight is not None and not self.deterministic:
                noise_NZ = latent_noise(sight.rollout, mean_NZ.shape[1]).to(mean_NZ)
                sampled_N = self._value(mean_NZ + (0.5 * log_variance_NZ).exp() * noise_NZ)
        return {"mean": value_N, "sampled": sampled_N, "kl": kl_to_standard_normal(mean_NZ, log_variance_NZ)}

    def _value(self, latent_NZ: Tensor) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(latent_NZ))).squeeze(-1)

    def _expected(self, mean_NZ: Tensor, log_variance_NZ: Tensor) -> Tensor:
        """[N] mean of `_value` over the noise: each unit before GELU is normal, and what follows GELU is linear."""
        variance_NZ = nn.functional.linear(log_variance_NZ.exp(), self.inner.weight.square())
        return self.outer(expected_gelu(self.inner(mean_NZ), variance_NZ)).squeeze(-1)

    def _reading(self, hidden_ND: Tensor, sight: Sight | None) -> dict[str, Tensor]:
        """Entropy, surprise and alignment; zeros where they are not asked for or cannot be known."""
        zero_N = hidden_ND.new_zeros(len(hidden_ND))
        found = {"entropy": zero_N, "nll": zero_N, "align": zero_N}
        if self.output is None or sight is None:
            return found
        mask_BT = sight.rollout.mask_BT
        logp_N, found["entropy"] = token_scores(hidden_ND, _said(sight.rollout), self.output)
        found["nll"] = -logp_N
        if self.reads_reference and sight.reference is not None:
            reference_ND = _states(sight.reference)[mask_BT].to(hidden_ND.dtype)
            found["align"] = distribution_kl(reference_ND, hidden_ND, self.output)
        return found


class _FrozenLayer(nn.Module):
    """A copy of an output layer that is neither trained nor saved: a run makes it again from its starting policy."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            part = getattr(layer, name, None)
            self.register_buffer(name, None if part is None else part.detach().clone(), persistent=False)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        return nn.functional.linear(hidden_ND, self.weight, self.bias)


def kl_to_standard_normal(mean_NZ: Tensor, log_variance_NZ: Tensor) -> Tensor:
    """[N] KL of a diagonal normal to the standard normal in nats, summed over Z; 0 if and only if they are equal.

    expm1 keeps it from falling below 0 by rounding where the variance is near 1.
    """
    return 0.5 * (mean_NZ.square() + torch.expm1(log_variance_NZ) - log_variance_NZ).sum(dim=-1)


def expected_gelu(mean: Tensor, variance: Tensor) -> Tensor:
    """Mean of x Phi(x) over normal x, elementwise; GELU of the mean where the variance is 0.

    By Stein's lemma it is mean Phi(u) + variance phi(u) / r with r = sqrt(1 + variance), u = mean / r.
    """
    scale = (1 + variance).sqrt()
    u = mean / scale
    density = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
    return mean * torch.special.ndtr(u) + variance / scale * density


def latent_noise(rollout: Rollout, size: int) -> Tensor:
    """[N, size] float64 standard normal draws for the policy tokens of a rollout, row by row.

    A draw is keyed by the row's key (seed, step, prompt, sample), its position and its place in the latent, so it does
    not depend on padding, on the rows beside it or on how often it is asked for: epochs over one rollout repeat it.
    """
    row_N, time_N = (index_N.cpu().numpy() for index_N in rollout.mask_BT.nonzero(as_tuple=True))
    keys_N = np.array([rng.hash64("bottleneck", key) for key in rollout.keys], np.uint64)[row_N]
    counter_NZ = time_N[:, None] * size + np.arange(size)
    uniform_NZ = torch.from_numpy(rng.counter_uniforms(keys_N[:, None], counter_NZ))
    return torch.special.ndtri(uniform_NZ.clamp(2.0**-53, 1 - 2.0**-53))


def _said(rollout: Rollout) -> Tensor:
    """[N] the policy's tokens."""
    return rollout.tokens_BL[:, -rollout.mask_BT.shape[1] :][rollout.mask_BT]


def _states(reference: Scores) -> Tensor:
    assert reference.hidden_BTD.shape[-1] > 0, "Head.reads_reference makes the reference keep its hidden states"
    return reference.hidden_BTD
