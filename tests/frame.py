"""A frame to test every algorithm and critic in: a random model, made-up rollouts, all in float64.

Algorithms and noise models are found by listing conf/: a new one is tested without a new line here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import open_dict
from transformers import Qwen3Config, Qwen3ForCausalLM

from noisyrl.experience import Collector, Experience, Grades, share
from noisyrl.ledger import Ledger
from noisyrl.policy import Agent, Critic, Policy
from noisyrl.trainer import Loop, Trainer
from noisyrl.types import Batch, Prompt, Rollout, rows

ROOT = Path(__file__).parents[1]
VOCABULARY = 40


def options(group: str) -> list[str]:
    """The choices of a config group, its subfolders included."""
    folder = ROOT / "conf" / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def composed(*overrides: str):
    """The training config, resolved as far as it goes; without what `launch.resolve` leaves to the sweeps."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", list(overrides))
    with open_dict(config):
        config.pop("sweep")
    return config


def built(group: str, *overrides: str):
    """One part of an experiment, as a run would build it."""
    return instantiate(composed(*overrides)[group], _convert_="all")


def random_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Qwen3ForCausalLM:
    """Two layers, 40 tokens."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).to(dtype).eval()


def made_up_rollout(
    prompts: int = 4, samples: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Rollout:
    """Prompts of 1 to 4 tokens, responses of 1 to 9, every third with a user's turn of two tokens inside."""
    g = torch.Generator().manual_seed(seed)
    rows, prompt_length, length = prompts * samples, 4, 9
    tokens = torch.randint(1, VOCABULARY, (rows, prompt_length + length), generator=g)
    attention = torch.zeros(rows, prompt_length + length, dtype=torch.bool)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        first, size = (
            int(torch.randint(0, prompt_length, (), generator=g)),
            int(torch.randint(1, length + 1, (), generator=g)),
        )
        attention[row, first : prompt_length + size] = True
        mask[row, :size] = True
        if row % 3 == 0 and size >= 5:
            mask[row, 2:4] = False
    named = [Prompt(({"role": "user", "content": str(i)},), "", "made-up", f"p{i}", "made-up") for i in range(prompts)]
    return Rollout(
        prompts=[prompt for prompt in named for _ in range(samples)],
        turns=[[f"text {row}"] for row in range(rows)],
        tokens_BL=torch.where(attention, tokens, 0),
        attention_BL=attention,
        mask_BT=mask,
        logp_BT=torch.where(mask, -torch.rand(rows, length, generator=g), 0).to(dtype),
        group_B=torch.arange(rows) // samples,
        sample_B=torch.arange(rows) % samples,
        finished_B=torch.ones(rows, dtype=torch.bool),
    )


def loop_for(algo, *, micro_rows: int = 8, minibatches: int = 1, dtype: torch.dtype = torch.float64) -> Loop:
    """A training loop around a random model; nothing of it is random beyond the model's fixed seed."""
    policy = Policy(random_model(dtype=dtype))
    critic = Critic(algo.critic, policy, seed=0)
    agent = Agent(policy, critic).to(dtype)
    _leave_the_start(critic.head)
    trainer = Trainer(micro_rows=micro_rows, minibatches=minibatches)
    accelerator = Accelerator(cpu=True)
    optimizer = trainer.optimizer(algo, agent)
    agent, optimizer = accelerator.prepare(agent, optimizer)
    reference = Policy(random_model(seed=1, dtype=dtype)) if algo.needs_reference else None
    if reference is not None:
        reference.keep_hidden = critic.head.reads_reference
    collector = Collector(
        accelerator=accelerator, lm=None, task=None, sampler=None, noise=built("noise", "noise=none"), agent=agent,
        reference=reference, micro_rows=micro_rows, seed=0,
    )  # fmt: skip
    return Loop(trainer=trainer, algo=algo, collector=collector, optimizer=optimizer, prompts=[], seed=0)


@torch.no_grad()
def _leave_the_start(head: torch.nn.Module) -> None:
    """DVPO's quantiles start on a straight line, at the kink of its curvature term: rounding would choose the side."""
    g = torch.Generator().manual_seed(7)
    for parameter in head.parameters():
        parameter += 0.01 * torch.randn(parameter.shape, generator=g, dtype=torch.float64).to(parameter)


def batch_for(loop: Loop, rollout: Rollout) -> Batch:
    """The rollout annotated by the loop's own networks, with made-up binary rewards; each process brings its share."""
    g = torch.Generator().manual_seed(5)
    reward = (torch.rand(len(rollout.prompts), generator=g) < 0.5).to(rollout.logp_BT.dtype)
    of_prompt = rollout.group_B.bincount().tolist()
    mine = share(len(of_prompt), loop.collector.accelerator)
    index = torch.arange(sum(of_prompt[: mine.start]), sum(of_prompt[: mine.stop]))
    batch = loop.collector.annotate(rows(rollout, index), Grades(reward[index]), 0).batch
    with torch.no_grad():
        scores, _ = loop.collector.agent(batch.rollout)
    # An old policy that differs from the new one: ratios away from 1, some of them clipped.
    shifted = scores.logp_BT + 0.3 * torch.randn(scores.logp_BT.shape, generator=g, dtype=scores.logp_BT.dtype)
    return replace(batch, logp_BT=torch.where(batch.mask_BT, shifted, 0))


def experience_of(batch: Batch) -> Experience:
    """The batch as if nothing had been done to its rewards."""
    uids, finished_B = [prompt.uid for prompt in batch.rollout.prompts], batch.rollout.finished_B
    ledger = Ledger(
        uids=uids, sample_B=batch.rollout.sample_B, group_B=batch.group_B, clean_B=batch.reward_B,
        observed_B=batch.reward_B, used_B=batch.reward_B, causes=[""] * len(uids), statuses=["scored"] * len(uids),
        finished_B=finished_B,
    )  # fmt: skip
    return Experience(batch=batch, clean_B=batch.reward_B, ledger=ledger)


def gradients(loop: Loop, batch: Batch) -> dict[str, torch.Tensor]:
    """Gradient of every parameter after one pass over the batch as a single minibatch."""
    found = {}
    loop._apply = lambda: {}  # keep the gradients instead of stepping
    credit = loop.algo.credit(batch)
    loop._update(batch, credit, torch.arange(len(batch.reward_B)), {}, critic_only=False)
    agent = loop.collector.accelerator.unwrap_model(loop.collector.agent)
    for name, parameter in agent.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    return found
