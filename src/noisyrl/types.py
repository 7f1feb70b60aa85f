"""The things handed along the line from prompt to table.

Axes: B rows, P prompts, G samples per prompt (B = P * G), L prompt + response, T response tokens, D hidden,
H critic heads, M quantiles, K target atoms. Prompts are padded on the left, responses on the right.
One mask polarity: True = counts. In a multi-turn rollout T also holds the user's turns, where `mask_BT` is False.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
X = TypeVar("X")


@dataclass(frozen=True)
class Prompt:
    """One question, before any answer. `uid` names it for ever: every random draw about it is keyed by it."""

    messages: tuple[Message, ...]
    answer: str
    task: str
    uid: str
    domain: str


@dataclass(frozen=True)
class Grade:
    """Outcome of grading one response: `score` in [0, 1], or None when it could not be scored (never 0 then)."""

    score: float | None
    status: Literal["scored", "error", "timeout"] = "scored"
    extracted: str | None = None
    """The answer found in the text; None = no answer was given."""

    def __post_init__(self) -> None:
        assert (self.score is None) == (self.status != "scored"), self
        assert self.score is None or 0.0 <= self.score <= 1.0, self


@dataclass(frozen=True)
class Rollout:
    """Sampled responses of P prompts x G samples, rows of one prompt side by side."""

    prompts: Sequence[Prompt]  # [B]
    turns: Sequence[Sequence[str]]  # [B] assistant, user, assistant, ...: the texts after the prompt
    tokens_BL: Tensor  # int64
    attention_BL: Tensor  # bool, False on padding
    mask_BT: Tensor  # bool, True on tokens the policy chose, end-of-turn tokens included
    logp_BT: Tensor  # float32, recorded while sampling; 0 where mask_BT is False
    group_B: Tensor  # int64, rows of one prompt share a number
    sample_B: Tensor  # int64, index of the row among the samples of its prompt
    finished_B: Tensor  # bool, False if cut by a length limit

    def __post_init__(self) -> None:
        rows, length = self.tokens_BL.shape
        assert self.mask_BT.shape == self.logp_BT.shape and self.mask_BT.shape[1] <= length
        assert self.mask_BT.shape[0] == self.attention_BL.shape[0] == rows == len(self.prompts) == len(self.turns)
        assert self.mask_BT.dtype == self.attention_BL.dtype == torch.bool
        assert self.group_B.shape == self.sample_B.shape == self.finished_B.shape == (rows,)

    @property
    def texts(self) -> list[str]:
        """[B] the whole response of each row, its turns on separate lines."""
        return ["\n".join(turns) for turns in self.turns]


@dataclass(frozen=True)
class Scores:
    """What a policy says of a rollout's response tokens; entry t speaks of response token t."""

    logp_BT: Tensor
    entropy_BT: Tensor  # nats
    hidden_BTD: Tensor  # last hidden state at the position *before* token t

    def __post_init__(self) -> None:
        assert self.logp_BT.shape == self.entropy_BT.shape == self.hidden_BTD.shape[:2]


@dataclass(frozen=True)
class Value:
    """A critic's estimate before each response token."""

    mean_BT: Tensor


@dataclass(frozen=True)
class Batch:
    """Everything an algorithm may look at. Clean rewards are not a field: they cannot leak."""

    rollout: Rollout
    reward_B: Tensor  # observed, after noise
    logp_BT: Tensor  # of the policy that sampled
    reference: Scores | None
    value: Value

    def __post_init__(self) -> None:
        assert self.logp_BT.shape == self.mask_BT.shape == self.value.mean_BT.shape
        assert self.reward_B.shape == self.mask_BT.shape[:1]

    @property
    def mask_BT(self) -> Tensor:
        return self.rollout.mask_BT

    @property
    def group_B(self) -> Tensor:
        return self.rollout.group_B


@dataclass(frozen=True)
class Credit:
    """Advantages, and what the critic is to learn; the algorithm's docstring says the target's shape."""

    advantage_BT: Tensor
    target: Tensor

    def __post_init__(self) -> None:
        assert self.target.shape[: min(2, self.target.dim())][:1] == self.advantage_BT.shape[:1]


@dataclass(frozen=True)
class Loss:
    """Loss per token, and its unweighted, detached parts for the log."""

    total_BT: Tensor
    terms: Mapping[str, Tensor]  # each [B, T]


def rows(x: X, index: Tensor) -> X:
    """Rows `index` [N] (int64) of any of the types above, recursively; None stays None."""
    return _each(x, lambda t: t.index_select(0, index.to(t.device)), lambda s: [s[i] for i in index.tolist()])


def to_device(x: X, device: torch.device) -> X:
    """The same thing with every tensor on `device`."""
    return _each(x, lambda t: t.to(device), lambda s: s)


def concat(parts: Sequence[Any]) -> Any:
    """All rows of several things of one type, in order, padded to a common prompt and response length.

    Groups of different parts stay different: they are renumbered. Padding is 0 (False).
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return _pad_and_cat(parts, [0] * len(parts))
    if isinstance(first, Rollout):
        return _concat_rollouts(parts)
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{f.name: concat([getattr(part, f.name) for part in parts]) for f in fields(first)})
    if first is None:
        return None
    return [item for part in parts for item in part]


def _concat_rollouts(parts: Sequence[Rollout]) -> Rollout:
    prompt_lengths = [part.tokens_BL.shape[1] - part.mask_BT.shape[1] for part in parts]
    left = [max(prompt_lengths) - length for length in prompt_lengths]
    groups, seen = [], 0
    for part in parts:
        names_G, member_B = torch.unique(part.group_B, return_inverse=True)
        groups.append(member_B + seen)
        seen += len(names_G)
    names = ("prompts", "turns", "mask_BT", "logp_BT", "sample_B", "finished_B")
    return replace(
        parts[0],
        tokens_BL=_pad_and_cat([part.tokens_BL for part in parts], left),
        attention_BL=_pad_and_cat([part.attention_BL for part in parts], left),
        group_B=torch.cat(groups),
        **{name: concat([getattr(part, name) for part in parts]) for name in names},
    )


def _pad_and_cat(tensors: Sequence[Tensor], left: Sequence[int]) -> Tensor:
    if tensors[0].dim() == 1:
        return torch.cat(list(tensors))
    width = max(t.shape[1] + pad for t, pad in zip(tensors, left, strict=True))
    padded = []
    for t, pad in zip(tensors, left, strict=True):
        out = t.new_zeros(t.shape[0], width, *t.shape[2:])
        out[:, pad : pad + t.shape[1]] = t
        padded.append(out)
    return torch.cat(padded)


def _each(x: Any, of_tensor: Any, of_sequence: Any) -> Any:
    if isinstance(x, Tensor):
        return of_tensor(x)
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{f.name: _each(getattr(x, f.name), of_tensor, of_sequence) for f in fields(x)})
    if isinstance(x, Sequence) and not isinstance(x, str):
        return of_sequence(x)
    if x is None:
        return None
    raise TypeError(f"rows and to_device know tensors, sequences and dataclasses of them, not {type(x).__name__}")
