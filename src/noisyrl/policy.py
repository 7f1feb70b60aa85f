"""The networks that are trained: a causal LM that scores rollouts, and a critic beside or on top of it.

The one-token shift lives here alone: entry t of everything returned speaks of response token t, and hidden states
are those at the position before it. Rows are re-packed to start at column 0, so plain causal attention needs no mask
and padding cannot be read; vocabulary logits exist only for policy tokens, and only a chunk at a time. Transformers
that `trunk` knows exactly take its shorter way, all others their own forward pass.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from noisyrl import rng, trunk
from noisyrl.critics.base import CriticSpec, Sight, States
from noisyrl.ops.vocabulary import CHUNK_ELEMENTS as _CHUNK_ELEMENTS
from noisyrl.ops.vocabulary import at_least_single, token_scores
from noisyrl.spec import InputError
from noisyrl.types import Rollout, Scores, Value


@dataclass(frozen=True)
class Layout:
    """Where the policy tokens of a rollout sit once every row starts at column 0."""

    tokens_BS: Tensor  # int64, right-padded, S = longest row; without what follows the last state that is read
    size_B: Tensor  # int64, tokens of each row, at least 1
    row_N: Tensor  # int64, row of each policy token
    time_N: Tensor  # int64, its place in [B, T]
    source_N: Tensor  # int64, column in [B, S] of the token before it
    target_N: Tensor  # int64, the token itself


def layout(rollout: Rollout) -> Layout:
    """The layout of a rollout; its padding is never read."""
    length = rollout.tokens_BL.shape[1]
    prompt_length = length - rollout.mask_BT.shape[1]
    start_B = rollout.attention_BL.int().argmax(dim=1)
    row_N, time_N = rollout.mask_BT.nonzero(as_tuple=True)
    column_N = prompt_length + time_N
    source_N = column_N - 1 - start_B[row_N]
    size_B = torch.ones_like(start_B).scatter_reduce(0, row_N, source_N + 1, "amax")
    columns_S = torch.arange(int(size_B.max()), device=rollout.tokens_BL.device)
    index_BS = (start_B[:, None] + columns_S).clamp(max=length - 1)
    tokens_BS = torch.where(columns_S < size_B[:, None], rollout.tokens_BL.gather(1, index_BS), 0)
    return Layout(tokens_BS, size_B, row_N, time_N, source_N, rollout.tokens_BL[row_N, column_N])


class Policy(nn.Module):
    """A Hugging Face causal LM whose forward pass scores a rollout."""

    keep_hidden = False  # whether scores carry hidden states; set by the Agent whose critic reads them
    candidates = 0  # K, tokens drawn at each position beside the one that was said; set likewise

    def __init__(self, model: PreTrainedModel, *, temperature: float = 1.0) -> None:
        """temperature: that of the sampler, so that both mean the same distribution."""
        super().__init__()
        self.model = model
        self.temperature = temperature

    @property
    def backbone(self) -> nn.Module:
        """The transformer without its output layer."""
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.head.weight.shape[1]

    @property
    def head(self) -> nn.Linear:
        """The output layer: hidden states to logits."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    def forward(self, rollout: Rollout) -> Scores:
        """Scores of the response tokens; 0 where mask_BT is False. hidden_BTD is [B, T, 0] unless kept."""
        where = layout(rollout)
        hidden_ND = hidden_states(self.backbone, where).each_ND
        logp_N, entropy_N = token_scores(
            hidden_ND, where.target_N, self.head, temperature=self.temperature, elements=_CHUNK_ELEMENTS
        )
        shape = rollout.mask_BT.shape
        kept_ND = hidden_ND if self.keep_hidden else hidden_ND.new_zeros(len(hidden_ND), 0)
        scores = Scores(
            logp_BT=scatter(logp_N, where, shape),
            entropy_BT=scatter(entropy_N, where, shape),
            hidden_BTD=scatter(at_least_single(kept_ND), where, shape),
        )
        if not self.candidates:
            return scores
        tokens_NK, logp_NK = self._draw_candidates(hidden_ND, where, rollout.keys)
        return replace(
            scores,
            candidates_BTK=scatter(tokens_NK, where, shape),
            candidate_logp_BTK=scatter(logp_NK, where, shape),
        )

    @torch.no_grad()
    def _draw_candidates(self, hidden_ND: Tensor, where: Layout, keys: list[int]) -> tuple[Tensor, Tensor]:
        """[N, K] tokens drawn from the policy, by keys of row, position and number, and their log-probabilities."""
        counter_N = where.time_N.cpu().numpy() * self.candidates
        keys_N = np.array([rng.hash64("candidate", key) for key in keys], np.uint64)[where.row_N.cpu().numpy()]
        uniform_NK = np.stack([rng.counter_uniforms(keys_N, counter_N + k) for k in range(self.candidates)], axis=1)
        chunk = max(1, _CHUNK_ELEMENTS // self.head.weight.shape[0])
        tokens, logp = [], []
        for start in range(0, max(len(hidden_ND), 1), chunk):
            part = slice(start, start + chunk)
            logp_NV = torch.log_softmax(at_least_single(self.head(hidden_ND[part])) / self.temperature, dim=-1)
            mass_NV = logp_NV.exp().cumsum(dim=-1, dtype=torch.float64)
            total_N1 = mass_NV[:, -1:]
            # Rounding may lift a draw onto the total, past the last token that has any mass.
            below_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
            wanted_NK = torch.minimum(torch.from_numpy(uniform_NK[part]).to(mass_NV) * total_N1, below_N1)
            tokens.append(torch.searchsorted(mass_NV, wanted_NK, right=True))
            logp.append(logp_NV.gather(1, tokens[-1]))
        return torch.cat(tokens), torch.cat(logp)

    @torch.no_grad()
    def check(self) -> None:
        """InputError: the architecture changes its logits after the output layer, so chunked scores would be wrong."""
        tokens_BS = torch.arange(1, 5, device=next(self.parameters()).device)[None]
        expected = self.model(input_ids=tokens_BS, use_cache=False).logits
        found = self.head(self.backbone(input_ids=tokens_BS, use_cache=False).last_hidden_state)
        if not torch.allclose(expected.float(), found.float(), atol=1e-2, rtol=1e-2):
            raise InputError(
                f"model: {type(self.model).__name__} transforms its logits after the output layer (soft-capping or "
                "scaling), which chunked log-probabilities do not support; use another architecture"
            )


class Critic(nn.Module):
    """A critic head on hidden states of its own transformer, or of the policy's."""

    def __init__(self, spec: CriticSpec, policy: Policy, *, seed: int) -> None:
        super().__init__()
        self.head = spec.make(policy.hidden_size, seed=seed, lm=policy.model)
        self.backbone = copy.deepcopy(policy.backbone) if spec.backbone == "own" else None

    @property
    def reads_hidden(self) -> bool:
        """Whether it stands on the policy's hidden states."""
        return self.backbone is None and any(True for _ in self.head.parameters())

    @property
    def reads_policy(self) -> bool:
        """Whether it needs a forward pass of the policy."""
        return self.reads_hidden or self.head.candidates > 0

    def forward(self, rollout: Rollout, scores: Scores | None, reference: Scores | None) -> Value:
        """Values before each response token. scores: the policy's, read where `reads_policy`."""
        sight = Sight(rollout, scores, reference)
        if self.backbone is not None:
            states = hidden_states(self.backbone, layout(rollout))
            return self.head.of_states(states._replace(hidden_UD=at_least_single(states.hidden_UD)), sight)
        if scores is not None:
            return self.head(scores.hidden_BTD, sight)
        return self.head(rollout.logp_BT.new_zeros(*rollout.mask_BT.shape, 0), sight)  # a head without weights


class Agent(nn.Module):
    """Policy and critic as one module: one forward pass, one backward pass, one wrapper for several processes."""

    def __init__(self, policy: Policy, critic: Critic) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        policy.keep_hidden = critic.reads_hidden
        policy.candidates = critic.head.candidates

    def recompute_activations(self) -> None:
        """From now on both networks keep the inputs of their layers alone and compute the rest again for gradients.

        Layers recompute in training mode only. The modules inside them are not in it, so dropout stays off.
        """
        for network in (self.policy.model, self.critic.backbone):
            if network is None:
                continue
            cast(PreTrainedModel, network).gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
            for module in network.modules():
                module.training = isinstance(module, GradientCheckpointingLayer)

    def forward(
        self,
        rollout: Rollout,
        reference: Scores | None = None,
        *,
        values_only: bool = False,
        freeze_policy: bool = False,
    ) -> tuple[Scores | None, Value]:
        """Scores and values of a rollout.

        reference      scores of the starting policy, for critics that read them
        values_only    no scores where the critic does not need the policy
        freeze_policy  no gradient reaches the policy, a shared trunk included
        """
        if values_only and not self.critic.reads_policy:
            return None, self.critic(rollout, None, reference)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze_policy):
            scores = self.policy(rollout)
        return scores, self.critic(rollout, scores, reference)


def hidden_states(backbone: nn.Module, where: Layout) -> States:
    """The last hidden state at the position before each policy token."""
    if trunk.trainable(backbone):
        state_MD, number_BS = trunk.hidden_states(backbone, where.tokens_BS, where.size_B)
        used_U, of_N = torch.unique(number_BS[where.row_N, where.source_N], return_inverse=True)
        return States(F.embedding(used_U, state_MD), of_N)
    hidden_BSD = backbone(input_ids=where.tokens_BS, use_cache=False).last_hidden_state
    return States.all_different(hidden_BSD[where.row_N, where.source_N])


def scatter(x_N: Tensor, where: Layout, shape: torch.Size) -> Tensor:
    """[N, ...] back to [B, T, ...], 0 elsewhere."""
    out = x_N.new_zeros(*shape, *x_N.shape[1:])
    return out.index_put((where.row_N, where.time_N), x_N)
