"""What a run is: the fields of `Experiment` are its table of contents; `session` is the run under way."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list

from noisyrl.algos.base import Algorithm
from noisyrl.correction.base import Correction
from noisyrl.correction.none import NoCorrection
from noisyrl.evaluation.harness import Evaluation
from noisyrl.loggers.base import Logger
from noisyrl.models import cache
from noisyrl.models.base import ModelSpec
from noisyrl.noise.base import Noise
from noisyrl.processor import keep_freed_memory
from noisyrl.provenance import describe_run, failure_recorded
from noisyrl.records import RunFolder
from noisyrl.rollout.base import Sampler
from noisyrl.session import Session, summary
from noisyrl.spec import InputError, Natural, spec
from noisyrl.tasks.base import Task
from noisyrl.trainer import Trainer
from noisyrl.types import Range


@spec
class Experiment:
    """The root of conf/train.yaml."""

    name: str
    """Name of the run and of its folder."""
    runs: str = "runs"
    """Folder that holds all runs."""
    seed: Natural = 0
    """Seed of everything: data order, sampling, noise, initialisation."""
    tier: Literal["smoke", "testbed", "full"] = "testbed"
    """Size class of the experiment; tables never mix tiers."""
    algo: Algorithm
    noise: Noise
    correction: Correction = NoCorrection()
    data: Task
    model: ModelSpec
    rollout: Sampler
    trainer: Trainer
    eval: Evaluation
    logger: Logger

    def run(self, config: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, float]:
        """Trains, evaluates and records; resumes what is unfinished, skips what is finished. Returns final scores.

        config   the resolved config this experiment was built from
        choices  the option taken of each config group: what tables call the algorithm, the noise, ...
        InputError: anything the user can mend.
        """
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision={"fp32": "no", "bf16": "bf16"}[self.trainer.precision],
            # Critic warm-up leaves the policy without gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if self.trainer.threads:
            torch.set_num_threads(self.trainer.threads)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        folder = RunFolder(Path(self.runs) / self.name, config)
        try:
            self._check(accelerator)
            state = self._open(folder, accelerator, choices)
            if state == "completed":
                return self._skip(folder, accelerator)
            if accelerator.is_main_process:
                print(f"run {self.name} [{self.tier}], noise {self.noise.describe()}", file=sys.stderr)
                if not isinstance(self.correction, NoCorrection):
                    print(f"correction {self.correction.describe()}", file=sys.stderr)
            with failure_recorded(folder):
                return Session(self, folder, accelerator).run(resume=state == "unfinished")
        finally:
            folder.close()
            # Jobs of one multirun share a process: without this the next Accelerator meets this one's settings.
            AcceleratorState._reset_state(reset_partial_state=accelerator.num_processes == 1)
            gc.collect()

    def _check(self, accelerator: Accelerator) -> None:
        """Everything that can be refused before a model is loaded."""
        self.logger.check()
        kind = accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise InputError(
                f"the launcher asks for {kind.value}: sampling and scoring need whole weights in every process, and "
                "sharded ones would wait for each other for ever; start replicas, `torchrun --nproc_per_node N`"
            )
        rows, world = self.trainer.prompts * self.rollout.samples, accelerator.num_processes
        if self.trainer.minibatches > rows:
            raise InputError(f"trainer.minibatches={self.trainer.minibatches} exceeds the {rows} rows of a step")
        if self.trainer.prompts < world:
            raise InputError(f"trainer.prompts={self.trainer.prompts} leaves some of {world} processes without work")
        if self.rollout.temperature == 0:
            raise InputError("rollout.temperature=0 makes all samples of a prompt alike: set it above 0 for training")
        self.algo.check(self.rollout.samples)
        given = getattr(self.data, "reward_range", Range())  # a task whose grades are no verdicts says so
        self.noise.check(self.rollout.samples, given)
        self.correction.check(self.algo)
        self.correction.check_rewards(self.noise.observed_range(given))
        pool = len(self.data.prompts("train"))
        if pool < self.trainer.prompts:
            raise InputError(
                f"data has {pool} training prompts, fewer than one step takes: set trainer.prompts={pool} or less"
            )
        self.model.check(self.data)
        self.eval.benchmarks(self.data)  # a public one whose files are missing
        if self.eval.at_start:
            cache.refuse_unwritable()

    def _open(self, folder: RunFolder, accelerator: Accelerator, choices: Mapping[str, str]) -> str:
        state = [""]
        if accelerator.is_main_process:
            state = [folder.open(describe_run(self, folder.config, choices))]
        if accelerator.num_processes > 1:
            broadcast_object_list(state)
        return state[0]

    def _skip(self, folder: RunFolder, accelerator: Accelerator) -> dict[str, float]:
        scores = folder.manifest["scores"]
        if accelerator.is_main_process:
            print(f"{folder.path} is complete with this very config; nothing to do\n{summary(folder.manifest)}")
        return {name: pair["end"] for name, pair in scores.items()}
