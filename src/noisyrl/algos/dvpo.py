"""DVPO: PPO whose critic learns the distribution of returns, contracted in its lower tail and kept in its upper one.

Distributional value policy optimisation (arXiv:2512.03847): 3 heads of 200 quantiles, generalised advantages over
distributions, and a critic loss of eight terms (eq. 3 to 11). The actor is PPO's: it sees the mean over quantiles, and
risk shapes only how that mean is learned.

Differs from the paper (of which only the abstract and digests could be read; `algo=dvpo_paper` is the literal reading):
1. Quantile levels are midpoints; levels j / M overestimate the mean, and the top quantile can only rise.
2. `target_law=mixture` makes targets the law of the lambda-return; averaging atoms of equal rank (comonotone) loses
   up to half of the standard deviation.
3. kappa is a share of the observed reward range and divides the loss. With kappa at the size of the rewards the
   "quantiles" are expectiles, and their mean is biased towards the middle (.183 for a Bernoulli of .1).
4. The quantile losses are summed over quantiles, as in QR-DQN: with the mean over all pairs the tail terms
   outweigh them, and neighbours cross.
5. The shift term compares running means (`shift.py`); per sample or batch it is optimistic under noise.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from noisyrl.algos.ppo import PPO
from noisyrl.algos.shift import running_gap, shift_term
from noisyrl.critics.quantile import QuantileCritic
from noisyrl.critics.values import DistributionValue, QuantileValue
from noisyrl.ops import risk
from noisyrl.ops.advantages import distributional_gae, gae, mixture_target
from noisyrl.ops.masked import keep, place, select
from noisyrl.ops.quantiles import midpoints, quantile_huber_terms
from noisyrl.spec import InputError, NonNegative, spec
from noisyrl.types import Batch, Credit, Loss, Value

Tail = Annotated[float, Field(ge=0, le=0.5)]


@spec
class DVPO(PPO):
    """`Credit.target` holds atoms of the return [B, T, K]: K = M, or 1 for target_law=mc."""

    critic: QuantileCritic
    """Quantile heads."""
    value_clip: None = None
    """Off: clipping a mean would shift all quantiles."""
    target_law: Literal["comonotone", "mixture", "mc"] = "mixture"
    """comonotone = equal ranks are paired (the paper's eq. 2); mixture = law of the lambda-return; mc = the return."""
    tau_grid: Literal["midpoint", "right"] = "midpoint"
    """Levels (2j - 1) / 2M, or j / M, which is biased and there for parity only."""
    kappa: NonNegative | None = 0.08
    """Huber threshold as a share of the observed reward range; null = squared errors, 0 = the pinball loss."""
    divide_by_kappa: bool = True
    """Divide the quantile losses by kappa, so that they tend to the pinball loss."""
    qr_sum: bool = True
    """Sum the quantile losses over quantiles (QR-DQN) instead of averaging them: M times larger."""
    w_qr: NonNegative = 1.0
    """Weight of quantile regression (eq. 3)."""
    w_risk: NonNegative = 0.1
    """Weight of quantile regression tilted to the lower tail (eq. 4); the paper's interval weight, as we read it."""
    w_cvar: NonNegative = 0.0
    """Weight of the squared error of the lower tail's mean (eq. 5)."""
    w_gain: NonNegative = 0.0
    """Weight of the squared error of the upper tail's mean (eq. 6)."""
    w_shift: NonNegative = 0.0
    """Weight of the mean target's excess over the mean value (eq. 7)."""
    w_shape: NonNegative = 0.0
    """Weight of a lower variance above, and an upper variance below, the target's (eq. 8)."""
    w_curv: NonNegative = 0.0
    """Weight of the tails' curvature (eq. 9)."""
    w_cons: NonNegative = 0.0
    """Weight of the squared distance between heads (eq. 10)."""
    interval_weight: NonNegative | None = None
    """The paper's knob under its name; where set, it replaces what `interval_weight_role` says. 0 = no risk shaping."""
    interval_weight_role: Literal["coef", "tilt", "tail"] = "coef"
    """coef = it is w_risk; tilt = quantile regression itself is tilted by it; tail = it is the mass of both tails.
    With tilt and tail there is no separate risk term."""
    tilt: NonNegative = 1.0
    """g of the risk term: quantile j weighs exp(-g tau_j), mean 1."""
    lower_mass: Tail = 0.1
    """alpha, probability mass of the lower tail; 0 switches the terms of eq. 5, 8 and 9 off."""
    upper_mass: Tail = 0.1
    """beta, probability mass of the upper tail; 0 switches the terms of eq. 6, 8 and 9 off."""
    shape_contracts: Literal["lower", "upper"] = "lower"
    """Which tail eq. 8 contracts while it keeps the other; upper is the mirrored control."""
    curv_mode: Literal["convex", "bell", "target"] = "convex"
    """Wanted curvature: convex tails, concave below and convex above, or that of the target."""
    curv_per_level: bool = False
    """Curvature per squared level (M^2 times the second difference), so that it does not fade with M."""
    shift_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the running means that the shift compares; 0 = this batch alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.tails) > 0.5:
            raise InputError(
                f"algo.interval_weight={self.interval_weight}: with algo.interval_weight_role=tail"
                " it is the mass of both tails, so set at most 0.5"
            )

    @torch.no_grad()
    def credit(self, batch: Batch) -> Credit:
        assert isinstance(batch.value, DistributionValue)
        reward_BT, mask_BT, quantiles_BTM = self.token_rewards(batch), batch.mask_BT, batch.value.ensemble_BTM
        if self.target_law == "mixture":
            target = mixture_target(reward_BT, quantiles_BTM, mask_BT, gamma=self.gamma, lam=self.lam_critic)
        elif self.target_law == "comonotone":
            error = distributional_gae(reward_BT, quantiles_BTM, mask_BT, gamma=self.gamma, lam=self.lam_critic)
            target = error + keep(quantiles_BTM, mask_BT[..., None])
        else:
            target = gae(reward_BT, torch.zeros_like(reward_BT), mask_BT, gamma=self.gamma, lam=1.0)[..., None]
        gap_B, memory = running_gap(batch, target, decay=self.shift_decay)
        # The mean over quantiles has the advantages of a scalar critic with that mean.
        return Credit(advantage_BT=self.advantages(batch), target=target, extra={"gap_B": gap_B}, memory=memory)

    def critic_loss(self, value: Value, batch: Batch, credit: Credit) -> Loss:
        """The weighted sum of the eight terms; each is logged unweighted, as 0 where its weight is 0."""
        assert isinstance(value, QuantileValue)
        used = {name: weight for name, weight in self.weights.items() if weight > 0}
        found = {name: term() for name, term in self._terms(value, batch, credit).items() if name in used}
        zero_N = value.ensemble_UM.new_zeros(len(value.of_N))
        total_N = sum((used[name] * term_N for name, term_N in found.items()), zero_N)
        names = list(self.weights)
        terms_NX = torch.stack([found.get(name, zero_N).detach() for name in names], dim=-1)
        terms = dict(zip(names, place(terms_NX, batch.mask_BT).unbind(dim=-1), strict=True))
        return Loss(total_BT=self.critic_coef * place(total_N, batch.mask_BT), terms=terms)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term, after `interval_weight` has had its say."""
        named = {
            "qr": self.w_qr,
            "risk": self.w_risk,
            "cvar": self.w_cvar,
            "gain": self.w_gain,
            "shift": self.w_shift,
            "shape": self.w_shape,
            "curv": self.w_curv,
            "cons": self.w_cons,
        }
        if self.interval_weight is not None:
            named["risk"] = self.interval_weight if self.interval_weight_role == "coef" else 0.0
        lower, upper = self.tails
        absent = {"cvar": lower == 0, "gain": upper == 0, "shape": 0 in (lower, upper), "curv": 0 in (lower, upper)}
        return {name: 0.0 if absent.get(name) else weight for name, weight in named.items()}

    @property
    def tails(self) -> tuple[float, float]:
        """Mass of the lower and of the upper tail."""
        if self.interval_weight is not None and self.interval_weight_role == "tail":
            return self.interval_weight, self.interval_weight
        return self.lower_mass, self.upper_mass

    @property
    def qr_tilt(self) -> float:
        """g of quantile regression itself; 0 = all quantiles weigh the same."""
        tilted = self.interval_weight is not None and self.interval_weight_role == "tilt"
        return self.interval_weight if tilted and self.interval_weight else 0.0

    def _terms(self, value: QuantileValue, batch: Batch, credit: Credit):
        """The terms per policy token [N], each computed when called."""
        target_NK = risk.ascending(select(credit.target, batch.mask_BT))
        quantiles_UHM, apart_N = value.quantiles_UHM, None
        if self.weights["cons"] > 0:
            quantiles_UHM, apart_U = risk.with_consistency_loss(quantiles_UHM)
            apart_N = apart_U.index_select(0, value.of_N)
        qr_N, risk_N = self._quantile_losses(quantiles_UHM, value.of_N, target_NK, batch).unbind(dim=-1)
        found = risk.tails(value.ensemble_UM, *self.tails, of_N=value.of_N)
        goal = risk.tails(target_NK, *self.tails, is_sorted=True)
        count, atoms = value.ensemble_UM.shape[-1], target_NK.shape[-1]
        per_level = count**2 if self.curv_per_level else 1
        return {
            "qr": lambda: qr_N,
            "risk": lambda: risk_N,
            "cvar": lambda: risk.tail_error(found.lower, goal.lower),
            "gain": lambda: risk.tail_error(found.upper, goal.upper),
            "shift": lambda: shift_term(value, batch, credit.extra["gap_B"])[batch.mask_BT],
            "shape": lambda: self._shape(found, goal),
            "curv": lambda: per_level * risk.bend_error(found, self.curv_mode, goal, (atoms / count) ** 2),
            "cons": lambda: apart_N,
        }

    def _shape(self, found: risk.Tails, goal: risk.Tails) -> Tensor:
        """The mirrored control is the same loss on the negated distributions, whose tails have changed places."""
        if self.shape_contracts == "upper":
            found, goal = (risk.Tails(x.upper, x.lower) for x in (found, goal))
        return risk.shape_error(found, goal)

    def _levels(self, like: Tensor) -> Tensor:
        count = like.shape[-1]
        tau_M = midpoints(count).to(like)
        return tau_M if self.tau_grid == "midpoint" else tau_M + 0.5 / count

    def _quantile_losses(self, quantiles_UHM: Tensor, of_N: Tensor, target_NK: Tensor, batch: Batch) -> Tensor:
        """[N, 2] quantile regression and that of the risk term, the mean over heads."""
        tau_M = self._levels(quantiles_UHM)
        kappa = float("inf") if self.kappa is None else self.kappa * batch.reward_range.width
        divide = self.divide_by_kappa and self.kappa is not None
        weight_TM = torch.stack([risk.risk_weights(tau_M, tilt) for tilt in (self.qr_tilt, self.tilt)])
        scale = (len(tau_M) if self.qr_sum else 1) / quantiles_UHM.shape[1]
        of_heads_NHT = quantile_huber_terms(
            quantiles_UHM, target_NK[:, None], tau_M, weight_TM, kappa=kappa, divide_by_kappa=divide, of_N=of_N
        )
        return scale * of_heads_NHT.sum(dim=1)
