"""One number per position: a linear head in float32."""

from __future__ import annotations

from torch import Tensor, nn

from noisyrl import rng
from noisyrl.critics.base import CriticSpec, Head, Sight
from noisyrl.spec import Positive, spec
from noisyrl.types import Value


@spec
class ScalarCritic(CriticSpec):
    """The critic of PPO."""

    init_sd: Positive = 0.01
    """Standard deviation of the head's initial weights. Larger values (1 / sqrt(D + 1)) were markedly slower here."""

    def make(self, hidden_size: int, *, seed: int = 0, lm: object = None) -> Head:
        return _Linear(hidden_size, init_sd=self.init_sd, seed=seed)


class _Linear(Head):
    def __init__(self, hidden_size: int, *, init_sd: float, seed: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.head.weight, std=init_sd, generator=rng.torch_generator("critic", seed))
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden_BTD: Tensor, sight: Sight | None = None) -> Value:
        return Value(mean_BT=self.head(hidden_BTD.to(self.head.weight.dtype)).squeeze(-1))
