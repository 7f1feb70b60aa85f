"""What a forward pass keeps for the backward pass, counted by running the project's own code on fake tensors.

Backbones are run on fake tensors, of any size and in no memory; losses are run on a few tokens, since what they keep
grows with the tokens. So nothing here has to be kept in step with the modules it speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from noisyrl import trunk
from noisyrl.critics.base import Sight
from noisyrl.planning.shape import Shape
from noisyrl.types import Batch, Prompt, Rollout, Scores

if TYPE_CHECKING:
    from noisyrl.algos.base import Algorithm

_ROWS, _TOKENS, _VOCABULARY = 4, 16, 64


@dataclass(frozen=True)
class BackboneBytes:
    """What one forward pass of a backbone keeps."""

    per_layer: float
    """Of each transformer block."""
    ends: float
    """Of embedding and last norm."""
    weight_copies: float
    """16-bit copies of the weights that autocast makes, all blocks."""


@dataclass(frozen=True)
class LossBytes:
    """What critic head and losses hold, in bytes per token of [B, T]."""

    saved: float
    """Kept for the backward pass, and as much again for its gradients at most."""
    kept: float
    """Values and credit of the whole step: they stay while a step is trained on."""
    head_parameters: int
    """Of the critic's head, trained."""
    head_frozen: int
    """Of the critic's head, not trained; for a vocabulary of `_VOCABULARY`."""


def backbone_bytes(
    shape: Shape, rows: int, length: int, *, dtype: torch.dtype, autocast: bool, distinct: int | None = None
) -> BackboneBytes:
    """Of `rows` sequences of `length` tokens.

    distinct  tokens of different rows that are neither padding nor shared from their start, where the forward pass is
              that of `trunk` if it knows the model; None = it is the model's own
    """

    def measured(layers: int) -> float:
        part = replace(shape, num_hidden_layers=layers, vocab_size=_VOCABULARY)
        with FakeTensorMode(), _default(dtype):
            model: nn.Module = part.untrained().get_decoder().eval()
            tokens_BS = torch.zeros(rows, length, dtype=torch.long)
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                if distinct is not None and trunk.trainable(model):
                    index_N = torch.zeros(distinct, dtype=torch.long)
                    merged = trunk.Merged(tokens_BS, index_N, index_N, index_N)
                    return saved_bytes(lambda: trunk.states(model, merged), model.parameters())
                return saved_bytes(lambda: model(input_ids=tokens_BS, use_cache=False), model.parameters())

    one, two = measured(1), measured(2)
    copies = 0.0
    if autocast and dtype == torch.float32:
        matrices = shape.layer_parameters - 2 * shape.hidden_size - 2 * shape.head_dim
        copies = 2.0 * matrices
    layer = two - one - copies
    return BackboneBytes(layer, one - layer - copies, copies * shape.num_hidden_layers)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """New weights are of this type: fake ones cannot be converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> float:
    """Bytes that `forward` keeps for its backward pass, without `parameters`, shared memory counted once."""
    known = {parameter.untyped_storage()._cdata for parameter in parameters}
    found: dict[int, Any] = {}  # holds the storages, so that no number is given twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return float(sum(storage.nbytes() for storage in found.values()))


def loss_bytes(algo: Algorithm, shape: Shape) -> LossBytes:
    """Of an algorithm's critic head, critic loss and policy loss."""
    small = Shape(
        hidden_size=shape.hidden_size,
        num_hidden_layers=1,
        intermediate_size=8,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=_VOCABULARY,
        tie_word_embeddings=True,
    )
    head = algo.critic.make(shape.hidden_size, seed=0, lm=small.untrained())
    (saved, kept), (saved_2, kept_2) = (_losses(algo, head, shape.hidden_size, t) for t in (_TOKENS, 2 * _TOKENS))
    tokens = _ROWS * _TOKENS
    return LossBytes(
        saved=(saved_2 - saved) / tokens,
        kept=(kept_2 - kept) / tokens,
        head_parameters=sum(p.numel() for p in head.parameters() if p.requires_grad),
        head_frozen=sum(b.numel() for b in head.buffers()),
    )


def _losses(algo: Algorithm, head: Any, hidden: int, tokens: int) -> tuple[float, float]:
    """(bytes saved, bytes kept) for `tokens` response tokens in each of a few rows."""
    rollout = _rollout(tokens)
    shape = rollout.mask_BT.shape
    hidden_BTD = torch.zeros(*shape, hidden, requires_grad=True)
    reference = _scores(shape, torch.zeros(*shape, hidden), head.candidates)
    scores = _scores(shape, hidden_BTD, head.candidates)
    with torch.no_grad():
        value = head(hidden_BTD, Sight(rollout, scores, reference)).kept(rollout.mask_BT)
        reward_B = (torch.arange(_ROWS) % 2).float()
        shown = reference if algo.needs_reference else None
        batch = Batch(rollout=rollout, reward_B=reward_B, logp_BT=rollout.logp_BT, reference=shown, value=value)
        credit = algo.credit(batch)

    def forward() -> list[Tensor]:
        found = head(hidden_BTD, Sight(rollout, scores, reference))
        losses = [algo.critic_loss(found, batch, credit), algo.policy_loss(scores, batch, credit)]
        return [loss.total_BT for loss in losses]

    # The rows that are trained on are copied out of all rows, and credit is computed once more for clean rewards.
    return saved_bytes(forward, head.parameters()), 2 * (_size(batch) + _size(credit))


def _rollout(tokens: int) -> Rollout:
    prompt = Prompt(messages=({"role": "user", "content": "?"},), answer="", task="plan", uid="plan", domain="plan")
    full = torch.ones(_ROWS, tokens + 1, dtype=torch.bool)
    return Rollout(
        prompts=[prompt] * _ROWS,
        turns=[("",)] * _ROWS,
        tokens_BL=torch.zeros(_ROWS, tokens + 1, dtype=torch.long),
        attention_BL=full,
        mask_BT=full[:, 1:],
        logp_BT=torch.full((_ROWS, tokens), -1.0),
        group_B=torch.zeros(_ROWS, dtype=torch.long),
        sample_B=torch.arange(_ROWS),
        finished_B=torch.ones(_ROWS, dtype=torch.bool),
    )


def _scores(shape: torch.Size, hidden_BTD: Tensor, candidates: int) -> Scores:
    grad = hidden_BTD.requires_grad
    return Scores(
        logp_BT=torch.full(shape, -1.0, requires_grad=grad),
        entropy_BT=torch.ones(shape, requires_grad=grad),
        hidden_BTD=hidden_BTD,
        candidates_BTK=torch.zeros(*shape, candidates, dtype=torch.long) if candidates else None,
        candidate_logp_BTK=torch.full((*shape, candidates), -1.0) if candidates else None,
    )


def _size(x: Any) -> float:
    """Bytes of every tensor in nested dataclasses and mappings."""
    if isinstance(x, Tensor):
        return float(x.numel() * x.element_size())
    if is_dataclass(x) and not isinstance(x, type):
        return sum(_size(getattr(x, field.name)) for field in fields(x))
    return sum(map(_size, x.values())) if isinstance(x, dict) else 0.0
