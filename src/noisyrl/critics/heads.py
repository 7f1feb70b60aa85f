"""Several estimates per position from one trunk: independent heads, linear or with one hidden layer each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisyrl import rng
from noisyrl.critics.base import CriticSpec, Head, Sight
from noisyrl.critics.values import EnsembleValue
from noisyrl.spec import Count, Natural, Positive, spec


class HeadStack(nn.Module):
    """H heads of `outputs` numbers each: [..., D] -> [..., H, outputs]. All heads are one matrix product."""

    def __init__(  # noqa: PLR0913 - the shape of two layers
        self, hidden_size: int, *, heads: int, outputs: int, hidden: int, init_sd: float, seed: int, alike: bool = False
    ) -> None:
        """hidden: units of each head's hidden layer (GELU), 0 = linear. alike: the outputs of a head start equal."""
        super().__init__()
        source = rng.torch_generator("critic", seed)
        self.shape = (heads, outputs)
        self.first = nn.Linear(hidden_size, heads * hidden) if hidden else None
        width = hidden or hidden_size
        # One head of one linear output starts as the head of `critic=scalar` does.
        weight = torch.empty(heads * (1 if alike else outputs), width).normal_(std=init_sd, generator=source)
        if self.first is not None:
            nn.init.normal_(self.first.weight, std=hidden_size**-0.5, generator=source)
            nn.init.zeros_(self.first.bias)
        self.weight = nn.Parameter(weight.repeat_interleave(outputs, dim=0) if alike else weight)
        self.bias = nn.Parameter(torch.zeros(heads * outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.first is None:
            # Not `linear`, which first writes the bias to every row: with hundreds of outputs that takes its time.
            return (x @ self.weight.T).add_(self.bias).unflatten(-1, self.shape)
        heads, outputs = self.shape
        inner = nn.functional.gelu(self.first(x)).unflatten(-1, (heads, -1))
        return torch.einsum("...hi,hoi->...ho", inner, self.weight.view(heads, outputs, -1)) + self.bias.view(
            heads, outputs
        )


@spec
class HeadsCritic(CriticSpec):
    """The critic of robust-Bellman PPO and of the scalar-heads control."""

    heads: Count = 3
    """H."""
    hidden: Natural = 0
    """Units of each head's hidden layer (GELU); 0 = linear heads."""
    init_sd: Positive = 0.01
    """Standard deviation of the last layer's initial weights."""

    def make(self, hidden_size: int, *, seed: int = 0, lm: object = None) -> Head:
        stack = HeadStack(hidden_size, heads=self.heads, outputs=1, hidden=self.hidden, init_sd=self.init_sd, seed=seed)
        return _Heads(stack)


class _Heads(Head):
    def __init__(self, stack: HeadStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, hidden_BTD: Tensor, sight: Sight | None = None) -> EnsembleValue:
        heads_BTH = self.stack(hidden_BTD).squeeze(-1)
        return EnsembleValue(mean_BT=heads_BTH.mean(dim=-1), heads_BTH=heads_BTH)
