"""How far are critics from the truth? They are trained on the oracle world, where it is known exactly.

    python -m analysis.oracle --algo ppo dvpo --noise none flip0.3 --steps 60

The starting policy answers and never moves; each critic is trained on its rollouts alone, as in critic warm-up, and
is then compared with the exact law of the observed reward, Bernoulli(fp + J q), after every prefix of every word of one
held-out prompt per start, weighted by how often the policy gets there. Columns:
rmse, bias, correlation   of the value's mean; `spread` is the rmse of the best constant
w1                        Wasserstein-1 distance of a quantile critic's law to the exact one
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from analysis.critics import composed, critic_loop, sample
from noisyrl.critics.values import DistributionValue
from noisyrl.experience import Grades
from noisyrl.experiment import Experiment
from noisyrl.models.base import LanguageModel
from noisyrl.noise.base import Noise
from noisyrl.noise.flip import Flip
from noisyrl.noise.none import NoNoise
from noisyrl.spec import InputError
from noisyrl.tasks.oracle import Oracle
from noisyrl.tasks.oracle_truth import Truth, evaluate, observed, optimise, truths, wasserstein
from noisyrl.trainer import Loop
from noisyrl.types import Value, concat

_RHO = (0.0, 0.05, 0.1, 0.2, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", nargs="+", default=["ppo"], help="options of conf/algo that have a critic")
    parser.add_argument("--noise", nargs="+", default=["none", "flip0.3"], help="none, or flips")
    parser.add_argument("--steps", type=int, default=60, help="of 128 rollouts, each learned from once")
    parser.add_argument("--seed", type=int, default=0, help="of the critic's weights and of the noise")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, e.g. algo.critic.lr=1e-3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    words = ["experiment=oracle", f"seed={options.seed}", *options.set]
    base = composed(*words, "algo=grpo")
    lm, task = base.model.load(base.data), base.data
    assert isinstance(task, Oracle), "experiment=oracle says so"
    known = truths(lm, task, one_per_start(task), temperature=base.rollout.temperature)
    answers = [sample(base, lm, step) for step in range(options.steps)]
    rows = []
    for noise in options.noise:
        for algo in options.algo:
            loop = trained(composed(*words, f"algo={algo}", f"noise={noise}"), lm, answers)
            rows.append({"noise": noise, "algo": algo, **errors(loop, known)})
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f"))
    print("\nProbability of success by rho, the share of moves that nature takes, for the worst:\n")
    print(values(task, known).to_markdown(floatfmt=".3f"))


def one_per_start(task: Oracle) -> list:
    """The first held-out prompt of each start."""
    return list({task.start(prompt): prompt for prompt in reversed(task.prompts("test"))}.values())[::-1]


def trained(experiment: Experiment, lm: LanguageModel, answers: Sequence) -> Loop:
    """A loop whose critic has learned from each rollout once. InputError: the algorithm has no critic."""
    loop = critic_loop(experiment, lm)
    if not any(group["part"] == "critic" for group in loop.optimizer.param_groups):
        raise InputError(f"--algo: {type(experiment.algo).__name__} has no critic to train; name one that has")
    for step, (rollout, clean_B) in enumerate(answers):
        loop.learn(loop.collector.annotate(rollout, Grades(clean_B), step).batch, step, step=-1)
    return loop


def errors(loop: Loop, known: Sequence[Truth]) -> dict[str, float]:
    """Distance of a critic to the truth, over all prefixes weighted by visits."""
    rollout = concat([truth.rollout for truth in known])
    value: Value = loop.collector.annotate(rollout, Grades(torch.zeros(len(rollout.prompts))), 0).batch.value
    rate = flip_rate(loop.collector.noise)
    exact_N = observed(np.concatenate([truth.value_WT.ravel() for truth in known]), fp=rate, fn=rate)
    weight_N = np.concatenate([truth.visit_WT.ravel() for truth in known])
    weight_N /= weight_N.sum()
    mean_N = value.mean_BT.double().numpy().ravel()
    covariance = np.cov(mean_N, exact_N, aweights=weight_N, ddof=0)
    found = {
        "rmse": float(np.sqrt(weight_N @ (mean_N - exact_N) ** 2)),
        "spread": float(np.sqrt(covariance[1, 1])),
        "bias": float(weight_N @ (mean_N - exact_N)),
        "correlation": float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])),
    }
    if isinstance(value, DistributionValue):
        atoms_NM = value.ensemble_BTM.double().flatten(0, 1).numpy()
        found["w1"] = float(weight_N @ wasserstein(atoms_NM, exact_N))
    return found


def flip_rate(noise: Noise) -> float:
    """The rate of false positives, and of false negatives. InputError: other noise than flips."""
    if not isinstance(noise, (NoNoise, Flip)):
        raise InputError(f"--noise: the exact law is Bernoulli under none and flips only, not {type(noise).__name__}")
    return noise.rate if isinstance(noise, Flip) else 0.0


def values(task: Oracle, known: Sequence[Truth]) -> pd.DataFrame:
    """Exact probabilities of success, means over starts; [policy, rho]."""
    starts = [task.state(start) for start in range(task.starts)]
    tables = {
        "teacher": [evaluate(task.automaton, task.teacher_TSA, rho=rho) for rho in _RHO],
        "best for each rho": [optimise(task.automaton, rho=rho)[1] for rho in _RHO],
    }
    found = {name: [value_TS[0, starts].mean() for value_TS in of_rho] for name, of_rho in tables.items()}
    model, gap = (np.mean([getattr(truth, name) for truth in known]) for name in ("value", "gap"))
    found[f"starting policy (+ at most {gap:.4f})"] = [model] + [np.nan] * (len(_RHO) - 1)
    return pd.DataFrame(found, index=[f"rho {rho:g}" for rho in _RHO]).T


if __name__ == "__main__":
    main()
