"""What the parts measure on: model folders with random weights, and training loops around them.

A random model costs what a trained one costs. How often it ends its turn is set beforehand, so that lengths match
whatever library samples from it: never (every response has the full length), or with a fixed chance per token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from torch import nn

from noisyrl.experience import Collector
from noisyrl.experiment import Experiment
from noisyrl.launch import build, resolve
from noisyrl.models.base import LanguageModel
from noisyrl.policy import Agent, Critic, Policy
from noisyrl.processor import keep_freed_memory
from noisyrl.spec import Natural, spec
from noisyrl.tasks.base import batch
from noisyrl.tasks.math import Chains
from noisyrl.trainer import Loop
from noisyrl.types import Grade, Prompt

ROOT = Path(__file__).parents[1]
# Chance per token that a turn ends: 28 tokens on average, as the arithmetic of the testbed has.
ENDS = 1 / 28


@spec
class GradedByLength(Chains):
    """The testbed's arithmetic prompts; an answer is right if its length in characters is even: groups are mixed."""

    replies: Natural = 0
    """Times the user answers before the dialogue is over."""

    def reply(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        """Some words, if it is still the user's turn."""
        return "add 4 , times 3" if len(turns) // 2 < self.replies else None

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        """By the last turn."""
        return Grade(float(len(turns[-1]) % 2 == 0))


def experiment(*overrides: str) -> Experiment:
    """The training experiment that these overrides describe, without noise unless they name one."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build(resolve(compose("train", ["noise=none", *overrides, "name=bench"])))


def on(folder: Path, *overrides: str) -> Experiment:
    """An experiment with the model in a folder, on prompts of the testbed graded by length."""
    graded = [f"data._target_={GradedByLength.__module__}.{GradedByLength.__qualname__}", "data.train_items=600"]
    return experiment("model=pretrained", f"model.path={folder}", "data=math", *graded, *overrides)


def model_folder(where: Path, *shape: str, end: float = 0.0) -> Path:
    """A folder with a random model and the testbed's tokenizer.

    shape  overrides of `model=tiny`, or the name of another model first: "small", "layers=2"
    end    chance per token that the model ends its turn
    """
    size, *fields = shape if shape and "=" not in shape[0] else ("tiny", *shape)
    folder = where / "-".join([size, *fields, f"end{end:.3f}"]).replace("=", "")
    if not folder.exists():
        words = [f"model={size}", "model.max_context_tokens=1024", "model.warm_start.steps=1"]
        made = experiment(*words, f"model.cache_dir={where}", *[f"model.{field}" for field in fields])
        lm = made.model.load(made.data)
        _set_end(lm, end)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    return folder


def warm_started(where: Path, size: str) -> Path:
    """A folder with the model that runs of `model=SIZE data=math` start from: samples of a prompt are much alike."""
    folder = where / f"{size}-warm"
    if not folder.exists():
        made = experiment(f"model={size}", "data=math")
        lm = made.model.load(made.data)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _set_end(lm: LanguageModel, probability: float) -> None:
    """Rewires the model so that its turns end with this chance at every token, whatever was said.

    The first coordinate of the residual stream is kept constant, and it alone decides the logit of the end token.
    """
    model: Any = lm.model
    model.config.tie_word_embeddings = False
    table, end = model.model.embed_tokens.weight, lm.tokenizer.eos_token_id
    model.lm_head.weight = nn.Parameter(table.clone())
    table[:, 0] = 4 * table.std()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    head = model.lm_head.weight
    head[:, 0] = 0
    head[end] = 0
    tokens = torch.randint(len(lm.tokenizer), (64, 32), generator=torch.Generator().manual_seed(0))
    hidden = model.model(input_ids=tokens).last_hidden_state[:, -1]
    others = torch.cat([head[:end], head[end + 1 :]])
    wanted = (hidden @ others.T).logsumexp(-1) + torch.tensor(probability).logit(eps=1e-30)
    head[end, 0] = (wanted / hidden[:, 0]).mean() if probability else -1e4


def load(folder: Path) -> LanguageModel:
    """A fresh copy of the model in a folder."""
    found = on(folder)
    return found.model.load(found.data)


def loop(e: Experiment, lm: LanguageModel | None = None) -> Loop:
    """The loop of a run, its critic warm-up left out: `next(loop.steps())` is one full step."""
    lm = e.model.load(e.data) if lm is None else lm
    policy = Policy(lm.model, temperature=e.rollout.temperature)
    agent = Agent(policy, Critic(e.algo.critic, policy, seed=e.seed))
    reference = None
    if e.algo.needs_reference:
        reference = Policy(e.model.load(e.data).model, temperature=e.rollout.temperature)
        reference.requires_grad_(False)
        reference.keep_hidden = agent.critic.head.reads_reference
    collector = Collector(
        accelerator=Accelerator(cpu=True), lm=lm, task=e.data, sampler=e.rollout, noise=e.noise, agent=agent,
        reference=reference, micro_rows=e.trainer.micro_rows, seed=e.seed,
    )  # fmt: skip
    made = Loop(
        trainer=e.trainer, algo=e.algo, collector=collector, optimizer=e.trainer.optimizer(e.algo, agent),
        prompts=list(e.data.prompts("train")), seed=e.seed,
    )  # fmt: skip
    made.progress.position = e.algo.critic.warmup_steps
    return made


def step(made: Loop) -> float:
    """One full step; its policy tokens."""
    before = made.progress.tokens
    next(made.steps())
    return made.progress.tokens - before


def prompts_of(made: Loop, number: int) -> list[Prompt]:
    """The prompts of training step `number`."""
    return batch(made.prompts, number, made.trainer.prompts, made.seed)


def quiet(allocator: bool = True) -> None:
    """One thread for every side, the allocator of a run, and no chatter of libraries between lines of progress.

    allocator  whether this process asks the C library for what a run of ours asks; a peer's own process does not
    """
    torch.set_num_threads(1)
    if allocator:
        keep_freed_memory()
    for name in ("transformers", "accelerate", "trl", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
