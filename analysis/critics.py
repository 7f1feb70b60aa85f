"""How well does each critic learn the starting policy's values from noisy rewards? No policy is trained.

    python -m analysis.critics --algo ppo dvpo --noise none gaussian flip0.3 het3 --lr 5e-4 1.5e-3 --seeds 3

The starting policy answers once; every critic is trained on the same rollouts, under noise drawn by its seed, and
judged on held-out rollouts by the clean outcome. Columns, means over seeds (in brackets the lowest and highest seed):
correlation   of the value with the clean outcome, over policy tokens
bias          mean value minus mean expected reward, less the mean noise that happened to be in the rewards, all over
              the training rollouts: over others, which questions were drawn moves it by .016 at the default sizes
heldout_bias  mean value minus mean expected reward over the held-out rollouts
mse           squared distance of the value to the expected reward
crossing, coverage, pit    of quantile critics, against noisy held-out outcomes; see noisyrl.metrics
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from tqdm import tqdm

from noisyrl.experience import Collector, Grades
from noisyrl.experiment import Experiment
from noisyrl.launch import build, resolve
from noisyrl.models.base import LanguageModel
from noisyrl.ops.masked import correlation
from noisyrl.policy import Agent, Critic, Policy
from noisyrl.tasks.base import batch as draw_prompts
from noisyrl.trainer import Loop, describe_critic
from noisyrl.types import Batch, Rollout

CONF = Path(__file__).parents[1] / "conf"
_HELD_OUT = 10**6  # data steps from here on are never trained on
Graded = tuple[Rollout, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", nargs="+", default=["ppo", "dvpo"], help="options of conf/algo that have a critic")
    parser.add_argument("--noise", nargs="+", default=["none", "gaussian", "flip0.3", "het3"])
    parser.add_argument("--lr", nargs="+", default=[None], help="critic learning rates; default: each algorithm's own")
    parser.add_argument("--decay", choices=["constant", "linear"], default="linear", help="of the rate, down to 0")
    parser.add_argument("--data", default="dialogue")
    parser.add_argument("--seeds", type=int, default=3, help="of the critic's weights and of the noise")
    parser.add_argument("--train", type=int, default=40, help="steps of 128 rollouts to learn from")
    parser.add_argument("--heldout", type=int, default=40, help="steps of 128 rollouts to be judged by")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, e.g. algo.w_cvar=0")
    parser.add_argument("--out", type=Path, help="append one JSON line per critic here")
    options = parser.parse_args()
    print(table(list(run(options))))


def run(options: argparse.Namespace) -> Iterator[dict]:
    """One record per algorithm, noise, learning rate and seed."""
    torch.set_num_threads(1)
    base = composed(f"data={options.data}", "algo=ppo")
    lm = base.model.load(base.data)
    steps = [*range(options.train), *range(_HELD_OUT, _HELD_OUT + options.heldout)]
    answers = [sample(base, lm, step) for step in tqdm(steps, desc="rollouts")]
    train, heldout = answers[: options.train], answers[options.train :]
    cells = list(itertools.product(options.noise, options.algo, options.lr, range(options.seeds)))
    for noise, algo, lr, seed in tqdm(cells, desc="critics"):
        words = [f"data={options.data}", f"noise={noise}", f"algo={algo}", f"seed={seed}", *options.set]
        experiment = composed(*words, *([f"algo.critic.lr={lr}"] if lr else []))
        record = {"noise": noise, "algo": algo, "lr": experiment.algo.critic.lr, "seed": seed, "set": options.set}
        record |= {"decay": options.decay} | judged(experiment, lm, train, heldout, decay=options.decay == "linear")
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
        yield record


def composed(*overrides: str) -> Experiment:
    """The experiment that these overrides describe."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(resolve(compose("train", [*overrides, "name=critics"])))


def sample(experiment: Experiment, lm: LanguageModel, step: int) -> Graded:
    """The starting policy's rollout of a data step, with clean grades."""
    prompts = draw_prompts(experiment.data.prompts("train"), step, experiment.trainer.prompts, seed=0)
    rollout = experiment.rollout(lm, experiment.data, prompts, seed=0, step=step)
    grades = [
        experiment.data.grade(prompt, turns) for prompt, turns in zip(rollout.prompts, rollout.turns, strict=True)
    ]
    return rollout, torch.tensor([grade.score for grade in grades])


def judged(
    experiment: Experiment, lm: LanguageModel, train: Sequence[Graded], heldout: Sequence[Graded], *, decay: bool
) -> dict:
    """Trains a fresh critic on `train` and says how good it is on `heldout`.

    decay  the rate falls to 0 over `train`. A constant rate keeps the luck of the last few steps' noise in the mean.
    """
    loop = critic_loop(experiment, lm)
    luck = []
    for step, (rollout, clean_B) in enumerate(train):
        for group in loop.optimizer.param_groups:
            group["peak_lr"] = experiment.algo.critic.lr * (1 - step / len(train) if decay else 1)
        experience = loop.collector.annotate(rollout, Grades(clean_B), step)
        surprise_B = experience.batch.reward_B - expected_reward(experiment, clean_B)
        luck.append(float(of_tokens(surprise_B, experience.batch).mean()))
        loop.learn(experience.batch, step, step=-1)
    found, values, outcomes = [], [], []
    for step, (rollout, clean_B) in enumerate(heldout):
        batch = loop.collector.annotate(rollout, Grades(clean_B), _HELD_OUT + step).batch
        found.append(describe_critic(batch, clean_B))
        values.append(batch.value.mean_BT[batch.mask_BT].double())
        outcomes.append(torch.stack([of_tokens(x_B, batch) for x_B in (clean_B, expected_reward(experiment, clean_B))]))
    value_N, (clean_N, wanted_N) = torch.cat(values), torch.cat(outcomes, dim=1).double()
    learnt = [mean_error(loop, experiment, rollout, clean_B) for rollout, clean_B in train]
    averages = pd.DataFrame(found).mean()
    quantile = {
        name: float(averages[f"critic/{key}"]) for name, key in _DIAGNOSTICS.items() if f"critic/{key}" in averages
    }
    return {
        "correlation": correlation(value_N, clean_N),
        "bias": (sum(learnt) - sum(luck)) / len(train),
        "heldout_bias": float((value_N - wanted_N).mean()),
        "mse": float((value_N - wanted_N).square().mean()),
        **quantile,
    }


_DIAGNOSTICS = {"crossing": "crossing_frac", "coverage": "coverage_error", "pit": "pit_error"}
_DIAGNOSTICS |= {"lower": "lower_spread", "upper": "upper_spread", "heads": "head_disagreement"}


def mean_error(loop: Loop, experiment: Experiment, rollout: Rollout, clean_B: torch.Tensor) -> float:
    """Mean of value minus expected reward over the policy tokens of a rollout."""
    batch = loop.collector.annotate(rollout, Grades(clean_B), _HELD_OUT).batch
    error_BT = batch.value.mean_BT - expected_reward(experiment, clean_B)[:, None]
    return float(error_BT[batch.mask_BT].mean())


def of_tokens(x_B: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[N] the entry of its row for each policy token."""
    return x_B[:, None].expand_as(batch.mask_BT)[batch.mask_BT]


def expected_reward(experiment: Experiment, clean_B: torch.Tensor) -> torch.Tensor:
    """What the noise makes of clean rewards on average: what an unbiased critic predicts the mean of."""
    rate = getattr(experiment.noise, "rate", None)  # symmetric flips; the other models leave the mean alone
    return clean_B if rate is None else rate + (1 - 2 * rate) * clean_B


def critic_loop(experiment: Experiment, lm: LanguageModel) -> Loop:
    """A training loop around the starting policy with a fresh critic."""
    algo, accelerator = experiment.algo, Accelerator(cpu=True)
    policy = Policy(lm.model, temperature=experiment.rollout.temperature)
    agent = Agent(policy, Critic(algo.critic, policy, seed=experiment.seed))
    reference = None
    if algo.needs_reference:  # the policy never moves, so it is its own reference
        reference = Policy(lm.model, temperature=experiment.rollout.temperature)
        reference.keep_hidden = agent.critic.head.reads_reference
    collector = Collector(
        accelerator=accelerator, lm=lm, task=experiment.data, sampler=experiment.rollout, noise=experiment.noise,
        agent=agent, reference=reference, micro_rows=experiment.trainer.micro_rows, seed=experiment.seed,
    )  # fmt: skip
    optimizer = experiment.trainer.optimizer(algo, agent)
    return Loop(trainer=experiment.trainer, algo=algo, collector=collector, optimizer=optimizer, prompts=[], seed=0)


def table(records: Sequence[dict]) -> str:
    """Markdown: one row per noise, algorithm and learning rate."""
    frame = pd.DataFrame(records).drop(columns=["set", "seed", "decay"])
    groups = frame.groupby(["noise", "algo", "lr"], sort=False)
    shown = groups.mean().round(3).astype(object)
    for column in ("correlation", "bias"):
        lowest, highest = groups[column].min(), groups[column].max()
        shown[column] = [
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
            for mean, low, high in zip(groups[column].mean(), lowest, highest, strict=True)
        ]
    return shown.reset_index().to_markdown(index=False)


if __name__ == "__main__":
    main()
