"""The book-keeping both samplers share: what each row has said, when it is over, and the Rollout at the end.

Masks come from here alone, never from a token's number: the padding token may be the end-of-turn token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from noisyrl.models.base import LanguageModel
from noisyrl.rollout.base import row_keys
from noisyrl.rollout.chat import Chat, all_prompt_tokens, end_tokens
from noisyrl.tasks.base import Task
from noisyrl.types import Prompt, Rollout


@dataclass
class Row:
    """One sample in the making."""

    prompt: Prompt
    context: list[int]  # the prompt's tokens
    key: np.uint64
    group: int
    sample: int
    turns: list[str] = field(default_factory=list)
    finished: bool = False
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [t] the response so far
    chosen: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # [t] True where the policy chose
    logp: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # [t]


@dataclass(frozen=True)
class Table:
    """What the rows of one rollout have in common."""

    lm: LanguageModel
    task: Task
    chat: Chat
    max_tokens: int
    temperature: float

    def end_turn(self, row: Row, turn: np.ndarray, used: int) -> list[int]:
        """Book an ended turn (tokens without the end-of-turn token); the user's reply in tokens, [] = row is over.

        used: response tokens so far. A reply that leaves no room for an answer ends the row unfinished.
        """
        row.turns.append(self.chat.text(turn))
        reply = self.task.reply(row.prompt, tuple(row.turns))
        if reply is None:
            row.finished = True
            return []
        tokens = self.chat.reply(reply)
        if used + len(tokens) >= self.max_tokens:
            return []
        row.turns.append(reply)
        return tokens


def open_rows(
    lm: LanguageModel, prompts: Sequence[Prompt], samples: int, *, seed: int, step: int, thinking: bool = False
) -> list[Row]:
    """One row for each sample of each prompt, rows of a prompt side by side. ValueError: no prompts."""
    if not prompts:
        raise ValueError("no prompts to sample from")
    keys = iter(row_keys(prompts, samples, seed=seed, step=step))
    contexts = all_prompt_tokens(lm.tokenizer, prompts, thinking=thinking)
    return [
        Row(prompt, context, next(keys), group, sample)
        for group, (prompt, context) in enumerate(zip(prompts, contexts, strict=True))
        for sample in range(samples)
    ]


def chunks(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """At most `size` rows at a time, prompts of like length together, so that little is padded."""
    order = sorted(rows, key=lambda row: len(row.context))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def open_chat(lm: LanguageModel, *, thinking: bool = False) -> Chat:
    """InputError: no chat template, or nothing ends a turn."""
    return Chat(lm.tokenizer, end_tokens(lm), thinking)


@contextmanager
def sampling(lm: LanguageModel) -> Iterator[None]:
    """No gradient, evaluation mode; the mode of each module is put back, as layers that recompute differ in it."""
    modes = [(module, module.training) for module in lm.model.modules()]
    lm.model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def collate(rows: Sequence[Row], lm: LanguageModel) -> Rollout:
    """The finished rows as tensors on the model's device: prompts padded on the left, responses on the right."""
    width = max(len(row.context) for row in rows)
    length = max(len(row.tokens) for row in rows)
    pad = lm.tokenizer.pad_token_id
    tokens = np.full((len(rows), width + length), 0 if pad is None else pad, np.int64)
    attention = np.zeros(tokens.shape, bool)
    mask = np.zeros((len(rows), length), bool)
    logp = np.zeros(mask.shape, np.float32)
    for i, row in enumerate(rows):
        start, end = width - len(row.context), width + len(row.tokens)
        tokens[i, start:end] = np.concatenate([row.context, row.tokens])
        attention[i, start:end] = True
        mask[i, : len(row.tokens)] = row.chosen
        logp[i, : len(row.tokens)] = row.logp
    device = lm.model.device
    return Rollout(
        prompts=[row.prompt for row in rows],
        turns=[tuple(row.turns) for row in rows],
        tokens_BL=torch.from_numpy(tokens).to(device),
        attention_BL=torch.from_numpy(attention).to(device),
        mask_BT=torch.from_numpy(mask).to(device),
        logp_BT=torch.from_numpy(logp).to(device),
        group_B=torch.tensor([row.group for row in rows], device=device),
        sample_B=torch.tensor([row.sample for row in rows], device=device),
        finished_B=torch.tensor([row.finished for row in rows], device=device),
        key_B=torch.from_numpy(np.array([row.key for row in rows], np.uint64).view(np.int64)).to(device),
    )
