"""What is true in the oracle world, exactly: values, optima and robust values of tables and of language models.

Axes: S states, A letters, T moves, W = A**T words. A state's value at move t is the probability of acceptance, so the
reward that follows is Bernoulli(value), and Bernoulli(`observed(value)`) once a verifier errs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from noisyrl.models.base import LanguageModel
from noisyrl.rollout.chat import end_tokens, prompt_tokens
from noisyrl.rollout.rows import Row, collate
from noisyrl.spec import InputError
from noisyrl.tasks.oracle import LETTERS, Automaton, Oracle
from noisyrl.types import Prompt, Rollout


def evaluate(
    automaton: Automaton, policy_TSA: np.ndarray, *, rho: float = 0.0, worst: float | None = None
) -> np.ndarray:
    """[T + 1, S] float64, (robust) probability of acceptance from each state before each move; row T is acceptance.

    policy_TSA  [T, S, A] float  probability of each letter; what is missing from 1 is failure, worth 0
    rho         with this probability nature, not the letter, chooses the successor, at every move anew
    worst       value of nature's choice; None = the least valuable successor of the state

    R-contamination, Wang and Zou 2021 (arXiv:2109.14523): V_t(s) = sum_a policy(a|s) [(1 - rho) V_t+1(sa) + rho worst].
    """
    value_TS = [automaton.accept_S.astype(np.float64)]
    for step_SA, policy_SA in zip(automaton.step_TSA[::-1], policy_TSA[::-1], strict=True):
        value_TS.append((policy_SA * _contaminated(value_TS[-1][step_SA], rho, worst)).sum(axis=1))
    return np.stack(value_TS[::-1])


def optimise(automaton: Automaton, *, rho: float = 0.0, worst: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The (robust-)optimal policy [T, S, A], ties to the first letter, and its value [T + 1, S]; see `evaluate`."""
    value_TS, policy_TSA = [automaton.accept_S.astype(np.float64)], []
    for step_SA in automaton.step_TSA[::-1]:
        value_SA = _contaminated(value_TS[-1][step_SA], rho, worst)
        policy_TSA.append(np.eye(value_SA.shape[1])[value_SA.argmax(axis=1)])
        value_TS.append(value_SA.max(axis=1))
    return np.stack(policy_TSA[::-1]), np.stack(value_TS[::-1])


def _contaminated(value_SA: np.ndarray, rho: float, worst: float | None) -> np.ndarray:
    """[S, A] value of each letter, given the values of the successors."""
    return (1 - rho) * value_SA + rho * (value_SA.min(axis=1, keepdims=True) if worst is None else worst)


def observed(value: np.ndarray, *, fp: float, fn: float) -> np.ndarray:
    """Probability of an observed 1: fp + J value with J = 1 - fp - fn, for a verifier with these error rates."""
    return fp + (1 - fp - fn) * value


def wasserstein(atoms_NM: np.ndarray, chance_N: np.ndarray) -> np.ndarray:
    """[N] Wasserstein-1 distance of M equally likely atoms to Bernoulli(chance): the integral of |quantile - quantile|.

    atoms_NM  [N, M] float, in any order
    chance_N  [N]    float in [0, 1]
    """
    atoms_NM, count = np.sort(atoms_NM, axis=1), atoms_NM.shape[1]
    # Atom j covers the levels j / M to (j + 1) / M; those above 1 - chance belong to the outcome 1.
    ones_NM = np.clip(np.arange(1, count + 1) / count - (1 - chance_N)[:, None], 0, 1 / count)
    return ((1 / count - ones_NM) * abs(atoms_NM) + ones_NM * abs(atoms_NM - 1)).sum(axis=1)


@dataclass(frozen=True)
class Truth:
    """One prompt under one language model; row w is the w-th word in order, column t its first t letters."""

    rollout: Rollout  # every word and the end of its turn, T + 1 response tokens: what a critic is shown
    value_WT: np.ndarray  # [W, T + 1] probability of success once t letters of the word are said
    visit_WT: np.ndarray  # [W, T + 1] probability of saying them, shared among the words that begin so
    leak: float  # probability of saying anything but a word
    gap: float  # at most this much of `value` is missed: words in unusual tokens, which decode to the same text

    @property
    def value(self) -> float:
        """Probability of success, before anything is said."""
        return float(self.value_WT[0, 0])


@torch.no_grad()
def truths(lm: LanguageModel, task: Oracle, prompts: Sequence[Prompt], *, temperature: float = 1.0) -> list[Truth]:
    """The truth about each prompt, from the model's own probabilities of every token of every word.

    Exact for samplers that allow more than T tokens, up to `gap`: special and white-space tokens are no part of the
    text that is graded. InputError: a letter is not one token.
    """
    language = _Language.of(lm, task)
    return [_truth(lm, task, prompt, language, temperature) for prompt in prompts]


@dataclass(frozen=True)
class _Language:
    """All words, and how they are spelled in tokens."""

    words_WT: np.ndarray  # [W, T] letters
    tokens_WT: np.ndarray  # [W, T + 1] the same in tokens, and the end of the turn
    ends: list[int]  # every token that ends a turn
    aliases: list[int]  # tokens that may leave the text a word; any other sign stays in it and spoils it

    @classmethod
    def of(cls, lm: LanguageModel, task: Oracle) -> _Language:
        """InputError: a letter is not one token."""
        spelled = [lm.tokenizer.encode(letter, add_special_tokens=False) for letter in LETTERS]
        if any(len(tokens) != 1 for tokens in spelled):
            raise InputError(
                f"data=oracle: {type(lm.tokenizer).__name__} spells a letter in several tokens; set model=tiny"
            )
        letters, ends = np.array(spelled)[:, 0], sorted(end_tokens(lm))
        words_WT = np.array(list(product(range(len(LETTERS)), repeat=task.moves)))
        tokens_WT = np.pad(letters[words_WT], ((0, 0), (0, 1)), constant_values=ends[0])
        # U+FFFD stands for a part of a character, which may be white space when it is complete.
        texts = lm.tokenizer.batch_decode([[token] for token in range(len(lm.tokenizer))], skip_special_tokens=True)
        silent = {token for token, text in enumerate(texts) if set("".join(text.split())) <= {*LETTERS, "\ufffd"}}
        return cls(words_WT, tokens_WT, ends, sorted(silent - {*letters.tolist(), *ends}))


def _truth(lm: LanguageModel, task: Oracle, prompt: Prompt, language: _Language, temperature: float) -> Truth:
    words_WT, context = language.words_WT, prompt_tokens(lm.tokenizer, prompt)
    chance_WTV = _chances(lm, context, language.tokens_WT, temperature)
    said_WT = np.take_along_axis(chance_WTV, language.tokens_WT[:, :, None], axis=2)[:, :, 0]
    end_W = chance_WTV[:, -1, language.ends].sum(axis=1)
    right_W = [task.automaton.accept_S[task.automaton.end(task.state(task.start(prompt)), word)] for word in words_WT]

    value_WT, visit_WT = np.empty_like(said_WT), np.ones_like(said_WT)
    value_WT[:, -1] = end_W * right_W
    for t in range(task.moves - 1, -1, -1):
        alike = len(LETTERS) ** (task.moves - t)  # neighbouring words with the same t letters
        mean_N = (said_WT[:, t] * value_WT[:, t + 1]).reshape(-1, alike).mean(axis=1)
        value_WT[:, t] = np.repeat(len(LETTERS) * mean_N, alike)
    visit_WT[:, 1:] = said_WT[:, :-1].cumprod(axis=1)
    leak = 1 - float(visit_WT[:, -1] @ end_W)
    visit_WT /= len(LETTERS) ** np.arange(task.moves, -1, -1)
    gap = float((visit_WT * chance_WTV[:, :, language.aliases].sum(axis=2)).sum())
    return Truth(_rollout(lm, prompt, context, language.tokens_WT, said_WT), value_WT, visit_WT, leak, gap)


def _chances(lm: LanguageModel, context: list[int], tokens_WT: np.ndarray, temperature: float) -> np.ndarray:
    """[W, T + 1, V] float64, the model's distribution in place of each response token."""
    count, length = tokens_WT.shape
    tokens_WL = np.concatenate([np.broadcast_to(context, (count, len(context))), tokens_WT[:, :-1]], axis=1)
    logits_WLV = lm.model(torch.from_numpy(tokens_WL).to(lm.model.device), use_cache=False).logits
    return (logits_WLV[:, -length:].double() / temperature).softmax(dim=-1).cpu().numpy()


def _rollout(
    lm: LanguageModel, prompt: Prompt, context: list[int], tokens_WT: np.ndarray, said_WT: np.ndarray
) -> Rollout:
    real = np.ones(tokens_WT.shape[1], bool)
    rows = [
        Row(prompt, context, np.uint64(row), 0, row, [], True, tokens_T, real, np.log(said_T))
        for row, (tokens_T, said_T) in enumerate(zip(tokens_WT, said_WT, strict=True))
    ]
    return collate(rows, lm)
