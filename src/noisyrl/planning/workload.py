"""What one step of a run consists of: rows, lengths, passes through networks. No weights, no device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from noisyrl.models.pretrained import Pretrained
from noisyrl.models.tiny import FromScratch
from noisyrl.rollout.chat import Chat, prompt_tokens
from noisyrl.spec import InputError
from noisyrl.tasks.base import DemonstratedTask, Task
from noisyrl.tasks.mix import curriculum
from noisyrl.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from noisyrl.experiment import Experiment

# Of 8 samples of a prompt by the testbed's warm-started policies, answers hold as many different tokens as 1.6 do.
_WARM_ANSWERS = 2
_LOOKED_AT = 512  # prompts and demonstrations whose lengths are measured
_CHARACTERS_PER_TOKEN = 4  # of English text in large vocabularies, where no tokenizer is at hand


@dataclass(frozen=True)
class Response:
    """One response as tokens: `chosen` is False where the user speaks."""

    turns: tuple[str, ...]
    tokens: np.ndarray  # int64 [t]
    chosen: np.ndarray  # bool [t]


@dataclass(frozen=True)
class Workload:
    """Rows and lengths of a training step on one process."""

    rows: int
    """Responses sampled and trained on by this process."""
    world_rows: int
    """The same for all processes together."""
    samples: int
    batch_rows: int
    micro_rows: int
    updates: int
    """Gradient steps per training step."""
    epochs: int
    prompt_tokens: np.ndarray
    """Lengths of some prompts."""
    response_tokens: np.ndarray
    """Lengths of some responses, the user's turns included, cut at rollout.max_tokens."""
    policy_frac: float
    """Share of response tokens that the policy says."""
    answers: int
    """Different answers among the samples of a prompt."""
    sources: tuple[str, ...]
    """How the lengths are known."""

    @cached_property
    def row_lengths(self) -> np.ndarray:
        """[rows] prompt and response of a typical step, longest first."""
        spread = (np.arange(self.rows) + 0.5) / self.rows
        lengths = np.quantile(self.response_tokens, spread) + self.prompt_tokens.mean()
        return lengths[::-1]

    @cached_property
    def micro_batches(self) -> list[tuple[int, float]]:
        """(rows, padded length) of each forward pass over the step, rows sorted by length."""
        lengths = self.row_lengths
        return [
            (len(lengths[i : i + self.micro_rows]), float(lengths[i])) for i in range(0, len(lengths), self.micro_rows)
        ]

    def distinct_tokens(self, rows: int) -> int:
        """Of the longest `rows` rows: each prompt and each answer to it counted once."""
        prompts, prompt = self.rows / self.samples, float(self.prompt_tokens.mean())
        met = max(1.0, prompts * (1 - (1 - min(1.0, rows / self.rows)) ** self.samples))
        answers = float(self.row_lengths[:rows].sum()) - rows * prompt
        return round(answers * min(1.0, self.answers / self.samples) + met * prompt)

    def distinct_rows(self, rows: int) -> int:
        """Of `rows` rows: each answer counted once."""
        return max(1, round(rows * min(1.0, self.answers / self.samples)))

    @property
    def padded_tokens(self) -> float:
        """Tokens of one pass over the step."""
        return sum(rows * length for rows, length in self.micro_batches)

    @property
    def policy_tokens(self) -> float:
        """Tokens the policy says in a step, on this process."""
        return self.rows * float(self.response_tokens.mean()) * self.policy_frac

    def alive(self, rows: int) -> np.ndarray:
        """[t] rows of `rows` that are still being sampled at response token t, in the mean."""
        longest = int(self.response_tokens.max())
        return rows * (self.response_tokens[None, :] > np.arange(longest)[:, None]).mean(axis=1)

    def decoded(self, rows: int) -> np.ndarray:
        """[steps] rows in the batch at each decoding step; the last steps serve the longest row alone."""
        alive = self.alive(rows)
        share = alive / rows
        running = 1 - (1 - share) ** rows  # probability that any row is left
        # A batch is as large as its live rows, and at least one row while it runs.
        return np.maximum(alive, 1)[running > 0.5] if rows > 1 else np.ones(int(round(self.response_tokens.mean())))

    @property
    def chunks(self) -> list[int]:
        """Rows of each batch the sampler decodes."""
        return [min(self.batch_rows, self.rows - i) for i in range(0, self.rows, self.batch_rows)]


def workload(
    e: Experiment,
    *,
    processes: int,
    prompt_lengths: np.ndarray,
    responses: np.ndarray,
    policy_frac: float,
    sources: Sequence[str],
) -> Workload:
    """The step of an experiment, seen by the busiest of `processes`."""
    prompts = -(-e.trainer.prompts // processes)
    minibatches = min(e.trainer.minibatches, e.trainer.prompts * e.rollout.samples)
    rows = prompts * e.rollout.samples
    return Workload(
        rows=rows,
        world_rows=e.trainer.prompts * e.rollout.samples,
        samples=e.rollout.samples,
        batch_rows=e.rollout.batch_rows,
        micro_rows=min(e.trainer.micro_rows, -(-rows // minibatches)),
        updates=minibatches * e.trainer.epochs,
        epochs=e.trainer.epochs,
        prompt_tokens=prompt_lengths,
        response_tokens=responses,
        policy_frac=policy_frac,
        answers=min(_WARM_ANSWERS, e.rollout.samples) if isinstance(e.model, FromScratch) else e.rollout.samples,
        sources=tuple(sources),
    )


def words(e: Experiment) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the run; None if it is not on this disk. InputError: the folder's is damaged."""
    from noisyrl.models import tokenizer

    if isinstance(e.model, FromScratch):
        # What the warm start builds, from the same conversations.
        from noisyrl.models.tiny import _TOKENIZER_CONVERSATIONS

        shown = islice(curriculum(e.data).demonstrations(), _TOKENIZER_CONVERSATIONS)
        texts = (message["content"] for conversation in shown for message in conversation)
        return tokenizer.build(texts, vocab_tokens=e.model.vocab_tokens, max_context=e.model.max_context_tokens)
    if isinstance(e.model, Pretrained) and e.model.path and _has_tokenizer(e.model.path):
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(e.model.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # loaders raise what they like
            raise InputError(f"the tokenizer in {e.model.path} cannot be loaded: {error}") from error
    return None


def _has_tokenizer(path: str) -> bool:
    from pathlib import Path

    return (Path(path).expanduser() / "tokenizer_config.json").is_file()


def lengths_of_prompts(task: Task, tokenizer: PreTrainedTokenizerBase | None) -> tuple[np.ndarray, str]:
    """Lengths of training prompts, and how they are known. InputError: the prompts cannot be read."""
    prompts: Sequence[Prompt] = task.prompts("train")[:_LOOKED_AT]
    if tokenizer is not None:
        return np.array([len(prompt_tokens(tokenizer, p)) for p in prompts]), "prompts: tokens of the training prompts"
    characters = [sum(len(message["content"]) for message in prompt.messages) for prompt in prompts]
    guess = np.ceil(np.array(characters) / _CHARACTERS_PER_TOKEN)
    return guess, f"prompts: ASSUMED {_CHARACTERS_PER_TOKEN} characters a token, no tokenizer is on this disk"


def demonstrated(
    task: Task, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], *, longest: int
) -> list[Response]:
    """What the task's teacher answers, as tokens; [] if nobody demonstrates the task.

    longest: tokens of the longest training prompt; longer ones are shown too, but not trained on.
    """
    if not isinstance(task, DemonstratedTask):
        return []
    chat, end = Chat(tokenizer, ends), min(ends)
    found = []
    for first, *others in islice(task.demonstrations(), _LOOKED_AT):
        asked = tokenizer.apply_chat_template([first], add_generation_prompt=True, tokenize=False)
        if len(tokenizer.encode(asked, add_special_tokens=False)) <= longest:
            found.append(_response(others, chat, end))
    return found


def _response(messages: Sequence[dict[str, Any]], chat: Chat, end: int) -> Response:
    tokens: list[int] = []
    chosen: list[bool] = []
    for message in messages:
        speaks = message["role"] == "assistant"
        said = chat.tokenizer.encode(message["content"], add_special_tokens=False) if speaks else []
        part = [*said, end] if speaks else chat.reply(message["content"])
        tokens += part
        chosen += [speaks] * len(part)
    return Response(tuple(message["content"] for message in messages), np.array(tokens), np.array(chosen))
