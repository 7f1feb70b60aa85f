"""A run under way: its parts are built, restored, trained, scored and saved here."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from tqdm import tqdm

from noisyrl import checkpoint, probes, rollouts
from noisyrl.evaluation.starting import starting_scores
from noisyrl.experience import Collector
from noisyrl.models.base import LanguageModel
from noisyrl.noise.base import Noise, Setting
from noisyrl.policy import Agent, Critic, Policy
from noisyrl.provenance import describe_inputs, finish_run, identity, refuse_other_data
from noisyrl.records import RunFolder
from noisyrl.rollout.chat import all_prompt_tokens
from noisyrl.spec import InputError
from noisyrl.tasks.base import batch as draw_prompts
from noisyrl.trainer import Loop
from noisyrl.types import Prompt

if TYPE_CHECKING:
    from noisyrl.experiment import Experiment


class Session:
    """The parts of a run while it runs."""

    def __init__(self, experiment: Experiment, folder: RunFolder, accelerator: Accelerator) -> None:
        self.experiment = experiment
        self.folder = folder
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        with accelerator.main_process_first():  # one process makes what is cached, the others find it
            self.lm = experiment.model.load(experiment.data)
        self.loop = self._build()
        self.probed = self._probe_prompts()

    def _build(self) -> Loop:
        e, device = self.experiment, self.accelerator.device
        prompts = list(e.data.prompts("train"))
        check_context(e, self.lm, prompts)
        if self.main:
            inputs = describe_inputs(self.lm, prompts, e.data)
            refuse_other_data(self.folder.manifest, inputs)
            self.folder.update(inputs=inputs)
        self.lm.model.to(device).eval()  # dropout off: the sampler and the trainer must mean the same distribution
        policy = Policy(self.lm.model, temperature=e.rollout.temperature)
        policy.check()
        critic = Critic(e.algo.critic, policy, seed=e.seed)
        reference = None
        if e.algo.needs_reference:
            reference = Policy(e.model.load(e.data).model.to(device).eval(), temperature=e.rollout.temperature)
            reference.requires_grad_(False)
            reference.keep_hidden = critic.head.reads_reference
            reference = self.accelerator.prepare_model(reference, evaluation_mode=True)
        agent = Agent(policy, critic).to(device)
        if e.trainer.activation_checkpointing:
            agent.recompute_activations()
        optimizer = e.trainer.optimizer(e.algo, agent)
        agent, optimizer = self.accelerator.prepare(agent, optimizer)
        collector = Collector(
            accelerator=self.accelerator,
            lm=self.lm,
            task=e.data,
            sampler=e.rollout,
            noise=self._prepared_noise(),
            correction=e.correction,
            grader_deadline_s=e.trainer.grader_deadline_s,
            agent=agent,
            reference=reference,
            micro_rows=e.trainer.micro_rows,
            seed=e.seed,
            trust_sampler=e.trainer.precision == "fp32",
        )
        return Loop(
            trainer=e.trainer, algo=e.algo, collector=collector, optimizer=optimizer, prompts=prompts, seed=e.seed,
            store=self._store if self.main else None,
        )  # fmt: skip

    def _prepared_noise(self) -> Noise:
        e = self.experiment
        noise = prepared_noise(e, self.lm, folder=self.folder.path, main=self.main)
        if self.main and noise.describe() != e.noise.describe():
            print(f"noise {noise.describe()}", file=sys.stderr)
            self.folder.update(noise=self.folder.manifest["noise"] | {"described": noise.describe()})
        return noise

    def run(self, *, resume: bool) -> dict[str, float]:
        step = self._restore() if resume else None
        started, worked = time.time(), time.process_time()
        with self._mirrored():
            if step is None:
                step = -self.experiment.algo.critic.warmup_steps
                if self.experiment.eval.due(0):
                    self._evaluate(0, "start")
            self._train(step)
        if not self.main:
            return {}
        finish_run(self.folder, self.loop, seconds=time.time() - started, cpu_seconds=time.process_time() - worked)
        print(summary(self.folder.manifest))
        return {name: pair["end"] for name, pair in self.folder.manifest["scores"].items()}

    @contextmanager
    def _mirrored(self) -> Iterator[None]:
        """The tracker is told how the block ended."""
        if not self.main:
            yield
            return
        self.tracker = self.experiment.logger.start(self.folder.path, self.folder.manifest)
        status = "failed"
        try:
            yield
            status = "completed"
        finally:
            self.tracker.finish(status)

    def _restore(self) -> int | None:
        """The step of the newest checkpoint, loaded; None if there is none yet and the run starts afresh."""
        found = checkpoint.saved(self.folder.path / "checkpoints")
        step = None
        if found:
            checkpoint.restore(self.loop, found[-1])
            step = int(found[-1].name.removeprefix("step_"))
        if self.main:
            # A kill may have come between a new checkpoint and the removal of the old one.
            checkpoint.prune(self.folder.path / "checkpoints", self.experiment.trainer.keep_last)
            self.folder.rewind(step if step is not None else -sys.maxsize)
            rollouts.rewind(self.folder.path, step or 0)
            self.folder.update(status="running", resumed=self.folder.manifest.get("resumed", 0) + 1)
            print(
                f"resuming {self.folder.path} from {'step ' + str(step) if found else 'its beginning'}", file=sys.stderr
            )
        return step

    def _train(self, start: int) -> None:
        e = self.experiment
        with tqdm(total=e.trainer.steps, initial=max(start, 0), desc=e.name, unit="step", disable=not self.main) as bar:
            for step, metrics, ledger in self.loop.steps():
                self._log(step, metrics)
                if self.main:
                    self.folder.enter(ledger.entries(step))
                bar.update(step > 0)
                shown = {name: metrics.get(f"reward/{name}_mean", math.nan) for name in ("clean", "observed")}
                bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
                last = step == e.trainer.steps
                if last or (step > 0 and e.eval.due(step)):
                    self._evaluate(step, "end" if last else None)
                every = e.trainer.checkpoint_every
                if last or (step >= 0 and every and step % every == 0):
                    self._save(step)

    def _store(self, step: int, kept: rollouts.Stored) -> None:
        collector = self.loop.collector
        kept = rollouts.trimmed(kept, collector.noise, collector.correction, self.loop.algo)
        rollouts.write(rollouts.step_file(self.folder.path, step), kept)

    def _save(self, step: int) -> None:
        folder = self.folder.path / "checkpoints"
        try:
            self._probe(step)
            checkpoint.save(self.loop, self.lm, folder, step=step, keep_last=self.experiment.trainer.keep_last)
        except OSError as error:
            newest = checkpoint.saved(folder)
            raise InputError(
                f"checkpoint of step {step} cannot be written to {folder} ({error}); make room and run the same "
                f"command again: it resumes from {newest[-1].name if newest else 'the beginning'}"
            ) from error

    def _probe(self, step: int) -> None:
        """Saves what the critic says of the probe prompts, where there is a critic, and what they are worth."""
        if not self.loop.has_critic:
            return
        e, collector = self.experiment, self.loop.collector
        arrays = probes.snapshot(collector.agent, self.lm, self.probed, thinking=e.rollout.enable_thinking)
        if e.trainer.probe_continuations:
            # No more rows at once than in training: a run that fits into memory still does.
            rows = e.trainer.prompts // self.accelerator.num_processes * e.rollout.samples
            batch_rows = min(rows, e.rollout.batch_rows)
            sampler = replace(e.rollout, samples=e.trainer.probe_continuations, batch_rows=batch_rows)
            memory = self.loop.progress.correction
            arrays |= probes.continuations(collector, self.probed, sampler, step=step, memory=memory)
        if self.main:
            probes.write(self.folder.path / f"probes/step_{step:06d}.npz", arrays)

    def _probe_prompts(self) -> Sequence[Prompt]:
        """InputError: the model's context has no room for a response to one of them."""
        e = self.experiment
        if not self.loop.has_critic:
            return ()
        chosen = probes.choose(e.data, e.noise, draw_prompts(self.loop.prompts, 0, e.trainer.prompts, e.seed))
        if e.trainer.probe_continuations:
            check_context(e, self.lm, chosen)
        return chosen

    def _evaluate(self, step: int, label: str | None) -> None:
        """Scores the policy on the main process; `label` names the scores in the manifest."""
        if self.main:
            scores = {f"eval/{name}": value for name, value in self._scores(step).items()}
            self._log(step, scores)
            if label:
                known = self.folder.manifest["scores"]
                self.folder.update(scores={n: known.get(n, {}) | {label: value} for n, value in scores.items()})
        self.accelerator.wait_for_everyone()

    def _scores(self, step: int) -> Mapping[str, float]:
        with tqdm(desc="scoring", unit="question", leave=False) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            e = self.experiment
            score = partial(starting_scores, e.eval) if step == 0 else partial(e.eval.run, step=step)
            return score(
                self.lm,
                e.data,
                e.rollout,
                run_info=identity(self.folder.manifest),
                checkpoint_hash=checkpoint.weights_hash(self.lm.model),
                out_dir=self.folder.path / "eval",
                progress=show,
            )

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.main and metrics:
            self.folder.log(step, metrics)
            self.tracker.log(step, metrics)


def prepared_noise(
    e: Experiment, lm: LanguageModel, *, folder: Path | None, main: bool = True, met: Sequence[Prompt] | None = None
) -> Noise:
    """The noise made ready. lm: the starting policy; met: prompts that will be met, those of training unless given."""
    prompts = list(e.data.prompts("train"))
    if met is None:
        streams = range(e.algo.critic.warmup_steps + e.trainer.steps)
        met = [p for step in streams for p in draw_prompts(prompts, step, e.trainer.prompts, e.seed)]
    return e.noise.prepare(
        Setting(
            task=e.data,
            lm=lm,
            sampler=e.rollout,
            prompts=prompts,
            met=list({p.uid: p for p in met}.values()),
            seed=e.seed,
            folder=folder,
            main=main,
            grader_deadline_s=e.trainer.grader_deadline_s,
        )
    )


def check_context(experiment: Experiment, lm: LanguageModel, prompts: Sequence[Prompt]) -> None:
    """InputError: a prompt and a full response do not fit the model's context."""
    room = lm.max_context - experiment.rollout.max_tokens
    contexts = all_prompt_tokens(lm.tokenizer, prompts, thinking=experiment.rollout.enable_thinking)
    for prompt, context in zip(prompts, contexts, strict=True):
        if len(context) > room:
            raise InputError(
                f"prompt {prompt.uid} has {len(context)} tokens, but the model's context of {lm.max_context} leaves "
                f"{room} beside rollout.max_tokens={experiment.rollout.max_tokens}: shorten the prompt or lower that"
            )


def summary(manifest: Mapping[str, Any]) -> str:
    """What a person wants to know at the end of a run."""
    lines = [f"{'greedy accuracy':32} {'start':>7} {'end':>7}"]
    for name, pair in manifest["scores"].items():
        if name.endswith("/acc"):
            start, end = (f"{pair[key]:.3f}" if key in pair else "-" for key in ("start", "end"))
            lines.append(f"{name.split('/')[1]:32} {start:>7} {end:>7}")
    for kind, pair in manifest.get("rewards", {}).items():
        lines.append(f"{'training reward, ' + kind:32} {pair['start']:>7.3f} {pair['end']:>7.3f}")
    if manifest.get("alarm"):
        lines.append(f"WARNING: {manifest['alarm']['said']}")
    lines.append(f"results: {manifest['folder']}  policy: {manifest.get('checkpoint', '-')}")
    return "\n".join(lines)
