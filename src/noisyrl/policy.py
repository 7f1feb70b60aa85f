"""The networks that are trained: a causal LM that scores rollouts, and a critic beside or on top of it.

The one-token shift lives here alone: entry t of everything returned speaks of response token t, and hidden states
are those at the position before it. Rows are re-packed to start at column 0, so plain causal attention needs no mask
and padding cannot be read; vocabulary logits exist only for policy tokens, and only a chunk at a time.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from noisyrl.critics.base import CriticSpec
from noisyrl.spec import InputError
from noisyrl.types import Rollout, Scores, Value

# Elements of one logits chunk: 64 MiB in float32, whatever the vocabulary.
_CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Layout:
    """Where the policy tokens of a rollout sit once every row starts at column 0."""

    tokens_BS: Tensor  # int64, right-padded, S = longest row
    row_N: Tensor  # int64, row of each policy token
    time_N: Tensor  # int64, its place in [B, T]
    source_N: Tensor  # int64, column in [B, S] of the token before it
    target_N: Tensor  # int64, the token itself


def layout(rollout: Rollout) -> Layout:
    """The layout of a rollout; its padding is never read."""
    length = rollout.tokens_BL.shape[1]
    prompt_length = length - rollout.mask_BT.shape[1]
    start_B = rollout.attention_BL.int().argmax(dim=1)
    size_B = rollout.attention_BL.sum(dim=1)
    columns_S = torch.arange(int(size_B.max()), device=rollout.tokens_BL.device)
    index_BS = (start_B[:, None] + columns_S).clamp(max=length - 1)
    tokens_BS = torch.where(columns_S < size_B[:, None], rollout.tokens_BL.gather(1, index_BS), 0)
    row_N, time_N = rollout.mask_BT.nonzero(as_tuple=True)
    column_N = prompt_length + time_N - start_B[row_N]
    return Layout(tokens_BS, row_N, time_N, column_N - 1, tokens_BS[row_N, column_N])


class Policy(nn.Module):
    """A Hugging Face causal LM whose forward pass scores a rollout."""

    keep_hidden = False  # whether scores carry hidden states; set by the Agent whose critic reads them

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
        hidden_ND = hidden_states(self.backbone, where)
        logp_N, entropy_N = _token_scores(hidden_ND, where.target_N, self.head, self.temperature)
        shape = rollout.mask_BT.shape
        kept_ND = hidden_ND if self.keep_hidden else hidden_ND.new_zeros(len(hidden_ND), 0)
        return Scores(
            logp_BT=scatter(logp_N, where, shape),
            entropy_BT=scatter(entropy_N, where, shape),
            hidden_BTD=scatter(at_least_single(kept_ND), where, shape),
        )

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
        self.head = spec.make(policy.hidden_size, seed=seed)
        self.backbone = copy.deepcopy(policy.backbone) if spec.backbone == "own" else None

    @property
    def reads_policy(self) -> bool:
        """Whether it needs the policy's hidden states."""
        return self.backbone is None and any(True for _ in self.head.parameters())

    def forward(self, rollout: Rollout, hidden_BTD: Tensor) -> Value:
        """Values before each response token. hidden_BTD: the policy's states, read where the trunk is shared."""
        if self.backbone is not None:
            where = layout(rollout)
            hidden_BTD = scatter(at_least_single(hidden_states(self.backbone, where)), where, rollout.mask_BT.shape)
        return self.head(hidden_BTD)


class Agent(nn.Module):
    """Policy and critic as one module: one forward pass, one backward pass, one wrapper for several processes."""

    def __init__(self, policy: Policy, critic: Critic) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        policy.keep_hidden = critic.reads_policy

    def forward(
        self, rollout: Rollout, *, values_only: bool = False, freeze_policy: bool = False
    ) -> tuple[Scores | None, Value]:
        """Scores and values of a rollout.

        values_only    no scores where the critic does not need the policy's states
        freeze_policy  no gradient reaches the policy, a shared trunk included
        """
        if values_only and not self.critic.reads_policy:
            return None, self.critic(rollout, rollout.logp_BT.new_zeros(*rollout.mask_BT.shape, 0))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze_policy):
            scores = self.policy(rollout)
        return scores, self.critic(rollout, scores.hidden_BTD)


def hidden_states(backbone: nn.Module, where: Layout) -> Tensor:
    """[N, D] last hidden state at the position before each policy token."""
    hidden_BSD = backbone(input_ids=where.tokens_BS, use_cache=False).last_hidden_state
    return hidden_BSD[where.row_N, where.source_N]


def at_least_single(x: Tensor) -> Tensor:
    """bf16 and fp16 as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def scatter(x_N: Tensor, where: Layout, shape: torch.Size) -> Tensor:
    """[N, ...] back to [B, T, ...], 0 elsewhere."""
    out = x_N.new_zeros(*shape, *x_N.shape[1:])
    return out.index_put((where.row_N, where.time_N), x_N)


def _token_scores(hidden_ND: Tensor, target_N: Tensor, head: nn.Linear, temperature: float) -> tuple[Tensor, Tensor]:
    chunk = max(1, _CHUNK_ELEMENTS // head.weight.shape[0])
    if len(target_N) <= chunk:
        return _chunk_scores(hidden_ND, target_N, head, temperature)
    parts = [
        # Recomputed in the backward pass: the logits of one chunk live at a time, forward and backward.
        checkpoint(
            _chunk_scores, hidden_ND[i : i + chunk], target_N[i : i + chunk], head, temperature, use_reentrant=False
        )
        for i in range(0, len(target_N), chunk)
    ]
    logp, entropy = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(entropy)


def _chunk_scores(hidden_ND: Tensor, target_N: Tensor, head: nn.Linear, temperature: float) -> tuple[Tensor, Tensor]:
    logp_NV = torch.log_softmax(at_least_single(head(hidden_ND)) / temperature, dim=-1)
    logp_N = logp_NV.gather(1, target_N[:, None]).squeeze(1)
    return logp_N, -(logp_NV.exp() * logp_NV).sum(dim=-1)
