"""How a reward model is made: `python src/reward_model.py` samples the starting policy, fits, judges and saves.

Labels are right or wrong, the loss is logistic; all weights are trained. How well the model ranks is measured on
prompts it was not trained on; its own training prompts, which reinforcement learning meets too, it knows better. Both
are written down.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from noisyrl import rng
from noisyrl.models.base import LanguageModel, ModelSpec
from noisyrl.processor import one_thread
from noisyrl.reward_model import RewardModel, read_facts, save
from noisyrl.rollout.base import Sampler
from noisyrl.spec import Count, Fraction, InputError, Natural, Positive, spec
from noisyrl.tasks.base import Task
from noisyrl.tasks.deadline import graded
from noisyrl.types import Prompt

_STEP = -3  # of the sampling stream: training counts from 0 upwards, initial answers are -2
_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class Example:
    """One graded response."""

    prompt: Prompt
    turns: Sequence[str]
    clean: float


@spec
class RewardModelTraining:
    """The root of conf/reward_model.yaml."""

    folder: str | None = None
    """Where the reward model is written; null = models/reward_DATA_sSEED."""
    seed: Natural = 0
    """Seed of everything: choice of prompts, sampling, order of examples, wrong labels."""
    data: Task
    """Where prompts and clean grades come from."""
    model: ModelSpec
    """The starting policy, whose responses are graded; a copy of it becomes the reward model."""
    rollout: Sampler
    """How responses are sampled, and how many to each prompt."""
    prompts: Count = 1000
    """Training prompts to learn from, each answered `rollout.samples` times by the starting policy."""
    heldout_prompts: Count = 400
    """Further training prompts on which the scale is set and the rank accuracy measured."""
    steps: Count = 400
    """Optimizer steps. Fewer make a weaker reward model, as do fewer prompts and wrong labels."""
    batch_rows: Count = 32
    """Responses per step."""
    lr: Positive = 5e-4
    """Peak learning rate of AdamW; it falls linearly to 0."""
    wrong_labels: Fraction = 0.0
    """Share of training responses whose label is turned around."""
    grader_deadline_s: Positive = 60.0
    """Seconds of wall clock after which grading a response is given up: it is left out."""

    def run(self, folder: Path) -> dict[str, Any]:
        """Trains, judges and saves; returns what reward_model.json says. InputError: anything the user can mend."""
        if folder.exists():
            raise InputError(f"{folder} exists: set folder= to another name, or delete it to make it again")
        learned, judged = self._choose()
        self.model.check(self.data)
        lm = self.model.load(self.data)
        reward_model = RewardModel(lm).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        with one_thread():  # the order of a parallel sum is not fixed
            examples = self._sample(lm, [*learned, *judged])
            names = {prompt.uid for prompt in judged}
            training = [example for example in examples if example.prompt.uid not in names]
            heldout = [example for example in examples if example.prompt.uid in names]
            fit(reward_model, training, self)
            facts = judge(reward_model, heldout, training)
        save(reward_model, folder, facts | self._made_from(lm, len(training)))
        return read_facts(folder)

    def _choose(self) -> tuple[list[Prompt], list[Prompt]]:
        """Prompts to learn from and prompts to be judged on, in hashed order. InputError: too few."""
        pool = sorted(self.data.prompts("train"), key=lambda p: rng.hash64("reward model", self.seed, p.uid))
        wanted = self.prompts + self.heldout_prompts
        if len(pool) < wanted:
            raise InputError(
                f"prompts={self.prompts} and heldout_prompts={self.heldout_prompts} ask for {wanted} prompts, but the "
                f"training split has {len(pool)}: lower them"
            )
        return pool[: self.prompts], pool[self.prompts : wanted]

    def _sample(self, lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Example]:
        found = []
        with tqdm(total=len(prompts), desc="sampling", unit="prompt", mininterval=_interval()) as bar:
            for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
                part = prompts[first : first + _PROMPTS_AT_ONCE]
                rollout = self.rollout(lm, self.data, part, seed=self.seed, step=_STEP)
                for prompt, turns in zip(rollout.prompts, rollout.turns, strict=True):
                    score = graded(self.data, prompt, turns, self.grader_deadline_s).score
                    if score is not None:
                        found.append(Example(prompt, turns, score))
                bar.update(len(part))
        return found

    def _made_from(self, lm: LanguageModel, responses: int) -> dict[str, Any]:
        knobs = ("prompts", "heldout_prompts", "steps", "batch_rows", "lr", "wrong_labels")
        return {
            "data": f"{type(self.data).__module__}.{type(self.data).__qualname__}",
            "policy": dict(lm.origin),
            "seed": self.seed,
            "responses": responses,
            "training": {name: getattr(self, name) for name in knobs},
        }


def fit(reward_model: RewardModel, examples: Sequence[Example], how: RewardModelTraining) -> None:
    """Trains in place on right and wrong, logistic loss. InputError: only one kind was sampled."""
    right_N = torch.tensor([float(example.clean > 0.5) for example in examples])
    if not 0 < right_N.sum() < len(right_N):
        raise InputError(
            f"all {len(right_N)} sampled responses are {'right' if len(right_N) and right_N[0] else 'wrong'}: a reward "
            "model needs both kinds to learn from; use other data or another model"
        )
    turned = [rng.uniform("reward model label", how.seed, n) < how.wrong_labels for n in range(len(examples))]
    label_N = torch.where(torch.tensor(turned), 1 - right_N, right_N)
    tokens = [reward_model.tokens(example.prompt, example.turns) for example in examples]
    optimizer = torch.optim.AdamW(reward_model.parameters(), lr=how.lr, betas=(0.9, 0.98), weight_decay=0.01)
    with tqdm(total=how.steps, desc="reward model", unit="step", mininterval=_interval()) as bar:
        for step, index in zip(range(how.steps), _batches(len(tokens), how), strict=False):
            loss = F.binary_cross_entropy_with_logits(reward_model([tokens[n] for n in index]).cpu(), label_N[index])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reward_model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = how.lr * min(1.0, (step + 1) / 20) * (1 - step / how.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
    reward_model.eval()


def judge(reward_model: RewardModel, heldout: Sequence[Example], training: Sequence[Example]) -> dict[str, Any]:
    """Sets the scale and measures the rank accuracy. InputError: right responses do not score above wrong ones."""
    score_N = _scored(reward_model, heldout)
    right_N = torch.tensor([example.clean > 0.5 for example in heldout])
    if not right_N.any() or right_N.all():
        raise InputError("the held-out responses are all right or all wrong: set heldout_prompts higher")
    wrong_mean, right_mean = float(score_N[~right_N].mean()), float(score_N[right_N].mean())
    if right_mean <= wrong_mean:
        raise InputError(
            "on held-out responses the reward model scores wrong ones as high as right ones: give it more to learn "
            "from (prompts, steps), or fewer wrong_labels"
        )
    reward_model.wrong_mean, reward_model.right_mean = wrong_mean, right_mean
    gap = right_mean - wrong_mean
    return {
        "wrong_mean": wrong_mean,
        "right_mean": right_mean,
        "wrong_sd": float(score_N[~right_N].std(correction=0)) / gap,
        "right_sd": float(score_N[right_N].std(correction=0)) / gap,
        "heldout": rank_accuracy(heldout, score_N.tolist()),
        "training_prompts": rank_accuracy(training, _scored(reward_model, training).tolist()),
    }


def rank_accuracy(examples: Sequence[Example], scores: Sequence[float]) -> dict[str, Any]:
    """How often a right response scores above a wrong one, of the same prompt and of any prompts.

    `every_pair` is the share over all pairs, ties half. Pairs that share a response or a prompt are not independent,
    so the exact (Clopper-Pearson) 95 % interval is that of `right` out of `pairs` disjoint ones: one pair per prompt;
    for any prompts, one response per prompt, paired by hash.
    """
    of_prompt: dict[str, dict[bool, list[float]]] = {}
    for example, score in zip(examples, scores, strict=True):
        of_prompt.setdefault(example.prompt.uid, {True: [], False: []})[example.clean > 0.5].append(score)
    both = {uid: kinds for uid, kinds in of_prompt.items() if kinds[True] and kinds[False]}
    same = [_above(kinds[True], kinds[False]) for kinds in both.values()]
    one_each = [tuple(_picked(kinds[kind], uid, kind) for kind in (True, False)) for uid, kinds in both.items()]
    picked: dict[bool, list[float]] = {True: [], False: []}
    for uid in sorted(of_prompt, key=lambda uid: rng.hash64("pair", uid)):
        drawn = [(kind, score) for kind, found in of_prompt[uid].items() for score in found]
        kind, score = drawn[rng.choice(len(drawn), "response", uid)]
        picked[kind].append(score)
    right, wrong = ([score for kinds in of_prompt.values() for score in kinds[kind]] for kind in (True, False))
    return {
        "same_prompt": _exact(one_each, np.concatenate([np.zeros(0), *same])),
        "any_prompt": _exact(list(zip(picked[True], picked[False], strict=False)), _above(right, wrong)),
    }


def train_from_config(cfg: Any) -> dict[str, Any]:
    """What `src/reward_model.py` does with conf/reward_model.yaml. InputError: anything the user can mend."""
    from hydra.core.hydra_config import HydraConfig

    from noisyrl.launch import build, resolve

    config = resolve(cfg)
    training = build(config)
    data = HydraConfig.get().runtime.choices["data"]
    folder = Path(training.folder or f"models/reward_{data}_s{training.seed}")
    return {"folder": str(folder), **training.run(folder)}


def summary(facts: Mapping[str, Any]) -> str:
    """What a person wants to know of a reward model."""
    lines = [f"{'rank accuracy':28} {'every pair':>10}   disjoint pairs, exact 95 % interval"]
    for where, kinds in ((name, facts[name]) for name in ("heldout", "training_prompts")):
        for kind, found in kinds.items():
            exact = "-" if not found["pairs"] else f"{found['right']} of {found['pairs']}"
            low, high = found["low"], found["high"]
            every = "-" if found["every_pair"] is None else f"{found['every_pair']:.3f}"
            lines.append(f"{where + ', ' + kind:28} {every:>10}   {exact:>12}  [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)


def _batches(count: int, how: RewardModelTraining) -> Iterator[list[int]]:
    """Row numbers of one batch after another, every row once per epoch."""
    size = min(how.batch_rows, count)
    for epoch in range(how.steps):
        order = rng.generator("reward model order", how.seed, epoch).permutation(count).tolist()
        yield from (order[first : first + size] for first in range(0, count - size + 1, size))


def _scored(reward_model: RewardModel, examples: Sequence[Example]) -> Tensor:
    return reward_model.scores([example.prompt for example in examples], [example.turns for example in examples])


def _above(right: Sequence[float], wrong: Sequence[float]) -> np.ndarray:
    """For each pair: 1 if the right one scores higher, 1/2 if both score the same, else 0."""
    gap = np.subtract.outer(np.array(right), np.array(wrong)).ravel()
    return (gap > 0) + 0.5 * (gap == 0)


def _picked(scores: Sequence[float], uid: str, kind: bool) -> float:
    return scores[rng.choice(len(scores), "pair", uid, kind)]


def _exact(pairs: Sequence[tuple[float, ...]], above: np.ndarray) -> dict[str, Any]:
    every_pair = float(above.mean()) if len(above) else None
    right = sum(better > worse for better, worse in pairs)
    low, high = binomtest(right, len(pairs)).proportion_ci(0.95, method="exact") if pairs else (0.0, 1.0)
    return {"every_pair": every_pair, "right": right, "pairs": len(pairs), "low": float(low), "high": float(high)}


def _interval() -> float:
    """Seconds between two states of a bar; a log file needs few."""
    return 0.5 if sys.stderr.isatty() else 20
