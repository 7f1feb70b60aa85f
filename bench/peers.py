"""TRL as the peer, in the version that the extra `peers` names; nothing else imports it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import stage
from bench.frame import cpu_s
from noisyrl.experiment import Experiment
from noisyrl.types import Prompt


def missing() -> str:
    """Why the peers cannot be measured; empty = they can."""
    if importlib.util.find_spec("trl") is None:
        return "TRL is not installed (`make peers`, or pip install -c constraints.txt -e '.[peers]')"
    return ""


class Grpo:
    """TRL's GRPOTrainer on a model folder, with a task's own grades as reward."""

    def __init__(self, folder: Path, met: Sequence[Prompt], e: Experiment) -> None:
        """met: the prompts of all steps, in their order; e: an experiment of ours, whose sizes it takes over."""
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        by_uid = {prompt.uid: prompt for prompt in met}

        def reward(completions: list, uid: list[str], **_: Any) -> list[float | None]:
            return [e.data.grade(by_uid[u], [c[-1]["content"]]).score for u, c in zip(uid, completions, strict=True)]

        settings = GRPOConfig(
            output_dir=str(folder / "trl"), use_cpu=True, bf16=False, learning_rate=e.algo.lr,
            lr_scheduler_type="constant", per_device_train_batch_size=e.trainer.prompts * e.rollout.samples,
            gradient_accumulation_steps=1, steps_per_generation=1, num_iterations=1,
            num_generations=e.rollout.samples, max_completion_length=e.rollout.max_tokens,
            temperature=e.rollout.temperature, top_k=0, top_p=1.0, beta=0.0, loss_type="grpo", scale_rewards="group",
            activation_checkpointing=False, shuffle_dataset=False, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        self.trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
            processing_class=AutoTokenizer.from_pretrained(folder),
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": list(p.messages), "uid": p.uid} for p in met]),
        )

    def train(self, steps: int, pipe: Connection) -> None:
        """Trains. Each step waits for a message, and answers with its CPU seconds, wall-clock and policy tokens."""
        from transformers import TrainerCallback

        trainer, said = self.trainer, []
        generate = trainer._generate_single_turn

        def counted(*args: Any, **kwargs: Any) -> Any:
            found = generate(*args, **kwargs)
            said.append(sum(map(len, found[0])))
            return found

        class Turns(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                pipe.recv()
                self.wall, self.cpu = time.perf_counter(), cpu_s()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                pipe.send((cpu_s() - self.cpu, time.perf_counter() - self.wall, said[-1:]))

        trainer._generate_single_turn = counted
        trainer.args.max_steps = steps
        trainer.add_callback(Turns())
        trainer.train()

    def generate(self, prompts: Sequence[Prompt]) -> float:
        """Samples as its training step does, texts included; the policy tokens said."""
        self.trainer.model.train()
        found = self.trainer._generate([list(p.messages) for p in prompts for _ in range(self.trainer.num_generations)])
        return float(sum(map(len, found[1])))


class GrpoElsewhere:
    """`Grpo` in a process of its own, which has the allocator that its users have, and waits while others compute."""

    def __init__(self, folder: Path, met: Sequence[Prompt], words: Sequence[str], steps: int) -> None:
        """words: overrides of the experiment `stage.on` makes; steps: how often `step` will be called."""
        context = get_context("spawn")  # a fork would inherit our allocator
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, folder, list(met), list(words), steps), daemon=True)
        self.process.start()
        theirs.close()

    def step(self) -> tuple[float, float, list[float]]:
        """One step of its training: CPU seconds, wall-clock, policy tokens. RuntimeError: the process ended."""
        try:
            self.pipe.send("step")
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("TRL's process ended before its last step; its own message is above") from error

    def close(self) -> None:
        """Waits for the end of the process, which follows its last step."""
        self.process.join()


def _serve(pipe: Connection, folder: Path, met: list[Prompt], words: list[str], steps: int) -> None:
    stage.quiet(allocator=False)
    Grpo(folder, met, stage.on(folder, *words)).train(steps, pipe)
