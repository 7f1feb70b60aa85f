"""The things handed along the line from prompt to table.

Axes: B rows, P prompts, G samples per prompt (B = P * G), L prompt + response, T response tokens, N policy tokens of
all rows, U different states before them, D hidden, H critic heads, M quantiles, K target atoms. Prompts are padded on
the left, responses on the right. One mask polarity: True = counts. In a multi-turn rollout T also holds the user's
turns, where `mask_BT` is False.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from noisyrl import rng

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
    key_B: Tensor | None = None  # int64, names all draws about a row: hash of (seed, step, prompt, sample)

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

    @property
    def keys(self) -> list[int]:
        """[B] `key_B` as unsigned integers; without it, of prompt and sample alone."""
        if self.key_B is not None:
            return [key % 2**64 for key in self.key_B.tolist()]
        pairs = zip(self.prompts, self.sample_B.tolist(), strict=True)
        return [rng.hash64("row", prompt.uid, sample) for prompt, sample in pairs]


@dataclass(frozen=True)
class Scores:
    """What a policy says of a rollout's response tokens; entry t speaks of response token t."""

    logp_BT: Tensor
    entropy_BT: Tensor  # nats
    hidden_BTD: Tensor  # last hidden state at the position *before* token t; [B, T, 0] unless asked for
    candidates_BTK: Tensor | None = None  # int64, tokens the policy might have said instead; only if asked for
    candidate_logp_BTK: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.logp_BT.shape == self.entropy_BT.shape == self.hidden_BTD.shape[:2]


@dataclass(frozen=True)
class Range:
    """The declared bounds of what is usually observed: the unit of scales that are relative to rewards.

    `Range()` is that of a verdict, 0 or 1 and nothing between.
    """

    low: float = 0.0
    high: float = 1.0
    graded: bool = False  # other values than the bounds occur; of bounds other than 0 and 1 this need not be said

    @property
    def width(self) -> float:
        return self.high - self.low

    def widened(self, below: float, above: float) -> Range:
        """With bounds that are so much farther out."""
        return replace(self, low=self.low - below, high=self.high + above)


@dataclass(frozen=True)
class Value:
    """A critic's estimate before each response token."""

    mean_BT: Tensor

    def diagnostics(self, outcome_B: Tensor, mask_BT: Tensor, tolerance: float) -> dict[str, float]:
        """What else can be said of the estimate, given rollouts it was not trained on, by metric name.

        outcome_B  [B] float   the observed outcome
        tolerance  estimates this close to an outcome count as equal to it
        """
        return {}

    def before_the_first_token(self) -> dict[str, Tensor]:
        """Each field [B, ...] by its name without axes; for rollouts whose every row has one token, the policy's."""
        return {f.name.rpartition("_")[0]: getattr(self, f.name)[:, 0] for f in fields(self)}

    def kept(self, mask_BT: Tensor) -> Value:
        """What is kept of an estimate made before the update, every tensor [B, T, ...]."""
        return self

    def for_losses(self) -> Value:
        """What losses may read of an estimate that was kept: not what credit alone needs."""
        return self


@dataclass(frozen=True)
class Batch:
    """Everything an algorithm may look at. Clean rewards are not a field: they cannot leak."""

    rollout: Rollout
    reward_B: Tensor  # observed, after noise and correction
    logp_BT: Tensor  # of the policy that sampled
    reference: Scores | None
    value: Value
    reward_range: Range = Range()  # of the observed rewards, as the noise declares it
    early_BT: Tensor | None = None  # the part of reward_B that is paid before the last token; None = nothing is
    memory: Mapping[str, float] = field(default_factory=dict)  # `Credit.memory` of the step before; {} at first

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
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # [B, ...] whatever else critic_loss will need
    memory: Mapping[str, float] = field(default_factory=dict)  # handed to the next step's batch; in the checkpoint

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


def trimmed(x: X, rollout: Rollout) -> X:
    """A rollout, or something else about its rows, without the columns behind its last policy token.

    Of a few rows of a batch these columns are mostly padding. Tensors of two axes or more are [B, T, ...] or [B, L].
    """
    used = rollout.mask_BT.any(dim=0).nonzero()
    behind = rollout.mask_BT.shape[1] - int(used[-1]) - 1 if len(used) else 0
    lengths = (rollout.mask_BT.shape[1], rollout.tokens_BL.shape[1])
    return _each(x, lambda t: t[:, : t.shape[1] - behind] if t.dim() > 1 and t.shape[1] in lengths else t, lambda s: s)


def to_device(x: X, device: torch.device) -> X:
    """The same thing with every tensor on `device`."""
    return _each(x, lambda t: t.to(device), lambda s: s)


def placed(parts: Sequence[Any], indices: Sequence[Tensor], shape: torch.Size) -> Any:
    """Rows of values or scores at their places in [B, T, ...] of this shape; 0 elsewhere.

    indices  rows [N] (int64) of each part, which may have fewer columns than T
    """

    def join(name: str) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        if tensors[0] is None:
            return None
        out = tensors[0].new_zeros(*shape, *tensors[0].shape[2:])
        for index, x in zip(indices, tensors, strict=True):
            out[index, : x.shape[1]] = x
        return out

    return replace(parts[0], **{f.name: join(f.name) for f in fields(parts[0])})


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
    names = ("prompts", "turns", "mask_BT", "logp_BT", "sample_B", "finished_B", "key_B")
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
    if isinstance(x, Mapping):
        return {key: _each(value, of_tensor, of_sequence) for key, value in x.items()}
    if isinstance(x, (bool, float)):
        return x
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{f.name: _each(getattr(x, f.name), of_tensor, of_sequence) for f in fields(x)})
    if isinstance(x, Sequence) and not isinstance(x, str):
        return of_sequence(x)
    if x is None:
        return None
    raise TypeError(f"rows and to_device know tensors, sequences and dataclasses of them, not {type(x).__name__}")
