"""No clean reward reaches the optimiser: random clean scores behind the noise change no weight."""

from dataclasses import replace

import pytest
import torch

from noisyrl.experience import Collector, Grades
from noisyrl.types import Prompt
from tests.frame import built, loop_for, made_up_rollout

ALGOS = ["ppo", "grpo", "dr_grpo", "reinforce_pp", "robust_bellman", "vrpo", "dvpo"]


class Poisoned(Collector):
    """Samples made-up rollouts; what it says of clean rewards is false from the noise on."""

    def sample(self, prompts, step):
        rollout = made_up_rollout(seed=step)
        clean = torch.rand(16, generator=torch.Generator().manual_seed(step)) < 0.5
        return rollout, Grades(clean.double())

    def annotate(self, rollout, grades, step, memory=None):
        found = super().annotate(rollout, grades, step, memory)
        false_B = torch.rand(len(found.clean_B), generator=torch.Generator().manual_seed(99)).to(found.clean_B)
        return replace(found, clean_B=false_B, ledger=replace(found.ledger, clean_B=false_B))


class Honest(Poisoned):
    def annotate(self, rollout, grades, step, memory=None):
        return Collector.annotate(self, rollout, grades, step, memory)


def trained(algo, kind, correction):
    """Weights after three steps, and the metrics of the last."""
    loop = loop_for(built("algo", f"algo={algo}"))
    words = [f"correction={correction}"] if correction == "none" else [f"correction={correction}", "seed=1"]
    parts = {f: getattr(loop.collector, f) for f in Collector.__dataclass_fields__}
    parts |= {"noise": built("noise", "noise=flip0.3"), "correction": built("correction", *words)}
    loop.collector = kind(**parts)
    loop.prompts = [Prompt((), "", "t", f"u{i}", "d") for i in range(64)]
    for step in range(3):
        metrics, _ = loop._step(step)
    weights = [p.detach().clone() for p in loop.collector.agent.parameters()]
    return weights, metrics


@pytest.mark.parametrize(("algo", "correction"), [*((algo, "none") for algo in ALGOS), ("dr_grpo", "backward0.3")])
def test_false_clean_scores_change_no_weight(algo, correction):
    honest, told = trained(algo, Honest, correction)
    poisoned, lied = trained(algo, Poisoned, correction)
    assert told["reward/clean_mean"] != lied["reward/clean_mean"]
    assert all(torch.equal(a, b) for a, b in zip(honest, poisoned, strict=True))
