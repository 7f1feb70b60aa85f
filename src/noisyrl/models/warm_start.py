"""Supervised fine-tuning on demonstrations: how an embedded model comes to know the languages of the testbed.

Only what the teacher's assistant says is learned. Conversations of similar length share a batch, so there is hardly
any padding, and vocabulary logits are computed at the learned positions only: on one CPU core nothing else matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from noisyrl import rng
from noisyrl.models.tokenizer import ASSISTANT, END, render
from noisyrl.spec import Count, Fraction, NonNegative, Positive, spec

_POOL_BATCHES = 128  # batches drawn at a time and sorted by length: enough for batches of one length


@spec
class WarmStart:
    """How long and how fast the demonstrations are learned."""

    steps: Count = 9000
    """Optimizer steps."""
    batch_conversations: Count = 8
    """Conversations per step. Few: at equal cost, 8 learn more than 16, and 16 more than 32."""
    learning_rate: Positive = 2.5e-3
    """Peak learning rate of AdamW."""
    rising_steps: Count = 300
    """Steps of the linear rise of the learning rate; a cosine follows."""
    final_frac: Fraction = 0.1
    """Learning rate of the last step, relative to the peak."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""
    clip_norm: Positive = 1.0
    """Largest gradient norm."""


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Iterator[Sequence[dict[str, str]]],
    settings: WarmStart,
    advance: Callable[[], None],
) -> None:
    """Trains `model` in place; `advance` is called after every step. Bit for bit repeatable on one machine.

    One thread, because the order of a parallel sum is not fixed; the thread count is restored.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _fit(model, _batches(tokenizer, conversations, settings), settings, advance)
    finally:
        torch.set_num_threads(threads)


def learning_rate(step: int, settings: WarmStart) -> float:
    """Learning rate of a step: linear rise, then a cosine down to `final_frac`."""
    rise = min(1.0, (step + 1) / settings.rising_steps)
    done = max(0, step - settings.rising_steps) / max(1, settings.steps - settings.rising_steps)
    fall = settings.final_frac + (1 - settings.final_frac) * (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * rise * fall


def learned(tokens_BL: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """[B, L] bool: the tokens of assistant turns, their <|end|> included.

    A token counts if more assistant turns have been opened than closed before it.
    """
    opens = tokens_BL == tokenizer.convert_tokens_to_ids(ASSISTANT)
    closes = tokens_BL == tokenizer.convert_tokens_to_ids(END)
    opened = np.cumsum(opens, axis=1) - opens
    closed = np.cumsum(closes, axis=1) - closes
    return opened > closed


def _fit(model: PreTrainedModel, batches: Iterator[tuple], settings: WarmStart, advance: Callable[[], None]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True)
    model.train()
    for step, (tokens_BL, learned_BL) in enumerate(batches):
        hidden_BLD = model.model(input_ids=tokens_BL[:, :-1], use_cache=False).last_hidden_state
        wanted_BL = learned_BL[:, 1:]
        logits_NV = model.lm_head(hidden_BLD[wanted_BL])
        F.cross_entropy(logits_NV, tokens_BL[:, 1:][wanted_BL]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        advance()
    model.eval()


def _batches(
    tokenizer: PreTrainedTokenizerFast, conversations: Iterator[Sequence[dict[str, str]]], settings: WarmStart
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    size = settings.batch_conversations
    for first in range(0, settings.steps, _POOL_BATCHES):
        count = min(_POOL_BATCHES, settings.steps - first)
        texts = [render(messages) for messages in islice(conversations, count * size)]
        rows = sorted(tokenizer(texts)["input_ids"], key=len)
        for place in rng.generator("warm start", first).permutation(count):
            yield _padded(rows[place * size : (place + 1) * size], tokenizer)


def _padded(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    tokens_BL = np.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id, dtype=np.int64)
    for row, tokens in zip(tokens_BL, rows, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(tokens_BL), torch.from_numpy(learned(tokens_BL, tokenizer))
