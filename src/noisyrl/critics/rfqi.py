"""A value and, beside it, the threshold of the dual of its worst case: two linear heads in float32.

The threshold is the value plus a learned offset, so it moves along when the value does. A threshold that lags behind a
rising value caps every target, and the value then cannot rise: seen here with a threshold of its own that starts at 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from noisyrl import rng
from noisyrl.critics.base import CriticSpec, Head, Sight
from noisyrl.critics.values import FloorValue
from noisyrl.spec import NonNegative, Positive, spec


@spec
class RFQICritic(CriticSpec):
    """The critic of RFQI. Its value starts, and with rho 0 stays, as that of `critic=scalar`."""

    init_sd: Positive = 0.01
    """Standard deviation of both heads' initial weights, as in `critic=scalar`."""
    init_offset: NonNegative = 0.5
    """How far above the value the threshold starts, in units of the reward. Too high costs rho times the excess, too
    low (1 - rho) times the shortfall, at every token."""

    def make(self, hidden_size: int, *, seed: int = 0, lm: object = None) -> Head:
        return _Floor(hidden_size, init_sd=self.init_sd, init_offset=self.init_offset, seed=seed)


class _Floor(Head):
    def __init__(self, hidden_size: int, *, init_sd: float, init_offset: float, seed: int) -> None:
        super().__init__()
        self.head, self.offset = nn.Linear(hidden_size, 1), nn.Linear(hidden_size, 1)
        source = rng.torch_generator("critic", seed)
        for layer, bias in ((self.head, 0.0), (self.offset, init_offset)):
            nn.init.normal_(layer.weight, std=init_sd, generator=source)
            nn.init.constant_(layer.bias, bias)

    def forward(self, hidden_BTD: Tensor, sight: Sight | None = None) -> FloorValue:
        hidden_BTD = hidden_BTD.to(self.head.weight.dtype)
        value_BT = self.head(hidden_BTD).squeeze(-1)
        # Detached: the paper's threshold is a network of its own and never shapes the value or what it is made of.
        offset_BT = self.offset(hidden_BTD.detach()).squeeze(-1)
        return FloorValue(mean_BT=value_BT, threshold_BT=value_BT.detach() + offset_BT)
