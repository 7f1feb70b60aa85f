"""Values of single tokens: Q(s, a) = V(s) + <W h_s, U e_a>, with e_a the starting policy's frozen input embedding.

The product has low rank, so that a value for every token of the vocabulary costs rank numbers per token and no layer
of the vocabulary's size. V^c(s), the policy's expectation of Q, is the mean over candidates the policy draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from noisyrl import rng
from noisyrl.critics.base import CriticSpec, Head, Sight
from noisyrl.critics.values import ActionValue
from noisyrl.spec import Count, Positive, spec
from noisyrl.types import Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@spec
class CQLCritic(CriticSpec):
    """The critic of CQL. V starts as the value of `critic=scalar`."""

    rank: Count = 64
    """Rank of the token part of Q."""
    candidates: Count = 16
    """K, tokens the policy draws at each position: for its expectation of Q and for the soft maximum."""
    init_sd: Positive = 0.01
    """Standard deviation of V's initial weights; the token part starts with about V's spread."""

    def make(self, hidden_size: int, *, seed: int = 0, lm: PreTrainedModel | None = None) -> Head:
        if lm is None:
            raise ValueError("critic=cql values tokens by the language model's input embeddings: hand it over as lm")
        weight_VE = cast(nn.Embedding, lm.get_input_embeddings()).weight.detach().float()
        return _TokenValues(hidden_size, weight_VE, spec=self, seed=seed)


class _TokenValues(Head):
    embedding_VE: Tensor

    def __init__(self, hidden_size: int, weight_VE: Tensor, *, spec: CQLCritic, seed: int) -> None:
        super().__init__()
        self.candidates = spec.candidates
        width = weight_VE.shape[1]
        self.head = nn.Linear(hidden_size, 1)
        self.of_state = nn.Linear(hidden_size, spec.rank, bias=False)  # W
        self.of_token = nn.Linear(width, spec.rank, bias=False)  # U
        source = rng.torch_generator("critic", seed)
        nn.init.normal_(self.head.weight, std=spec.init_sd, generator=source)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.of_state.weight, std=spec.init_sd * spec.rank**-0.5, generator=source)
        nn.init.normal_(self.of_token.weight, std=width**-0.5, generator=source)
        # Scaled to unit size, which U could do as well, so that initial values do not depend on the model's scale.
        # A copy: the policy's own moves on. Not saved: a resumed run makes it again from the starting policy.
        self.register_buffer("embedding_VE", weight_VE / weight_VE.square().mean().sqrt(), persistent=False)

    def forward(self, hidden_BTD: Tensor, sight: Sight | None = None) -> Value:
        hidden_BTD = hidden_BTD.to(self.head.weight.dtype)
        value_BT = self.head(hidden_BTD).squeeze(-1)
        if sight is None or sight.scores is None or sight.scores.candidates_BTK is None:
            return Value(mean_BT=value_BT)
        assert sight.scores.candidate_logp_BTK is not None, "drawn together with the candidates"
        mask_BT = sight.rollout.mask_BT
        taken_BT = torch.where(mask_BT, sight.rollout.tokens_BL[:, -mask_BT.shape[1] :], 0)
        tokens_BTK = torch.cat([taken_BT[..., None], sight.scores.candidates_BTK], dim=-1)
        token_BTKR = embedding(tokens_BTK, self.of_token(self.embedding_VE))
        state_BTR = self.of_state(hidden_BTD)
        q_BTK = value_BT[..., None] + (token_BTKR * state_BTR[..., None, :]).sum(dim=-1)
        return ActionValue(
            mean_BT=q_BTK[..., 1:].mean(dim=-1),
            taken_BT=q_BTK[..., 0],
            candidates_BTK=q_BTK[..., 1:],
            candidate_logp_BTK=sight.scores.candidate_logp_BTK,
        )
