"""Time of a run on this CPU, from short runs of the project's own code: a model of the same shape with random weights.

What is timed: a whole run of a few small steps, rollouts of the right lengths put in its way (everything but sampling);
the sampler at two batch sizes and two lengths; the evaluation at two numbers of questions. The rest is straight lines
through these points. With one thread seconds are CPU seconds, so that other work on the machine does not count.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from noisyrl import rng
from noisyrl.loggers.jsonl import JsonlLogger
from noisyrl.models.base import LanguageModel, ModelSpec
from noisyrl.peak_memory import peak_bytes
from noisyrl.planning.rates import StepTime
from noisyrl.planning.shape import Shape
from noisyrl.planning.workload import Response, Workload
from noisyrl.processor import keep_freed_memory
from noisyrl.rollout.base import Sampler
from noisyrl.rollout.rows import collate, open_rows
from noisyrl.spec import spec
from noisyrl.tasks.base import Task
from noisyrl.tasks.base import batch as draw_prompts
from noisyrl.types import Prompt, Rollout

if TYPE_CHECKING:
    from noisyrl.experiment import Experiment

_DECODED_TOKENS = 17  # of a timed rollout: 16 steps after the first
_QUESTIONS = (8, 40)
_STEPS = 5  # of a timed run: the first pays for what is set up once, the last has no next one to end it
_ROWS = 128  # most rows of a timed rollout


@dataclass(frozen=True)
class Timing:
    """Seconds of a run's parts."""

    step: StepTime
    start: float
    """From the command to the first step, and from the last one to the end, without evaluation."""
    evaluation: float
    """Of one scoring."""
    grown_bytes: float
    """Memory this process took while measuring, beyond the most it had held before."""
    spent: float
    """What this measurement itself took."""
    clock: str
    """What a second is."""


@spec
class _Untrained(ModelSpec):
    """A model of a given shape with random weights, for its speed."""

    shape: Shape
    words: Any
    """The tokenizer."""
    context: int
    """Tokens of prompt and response that fit."""

    def check(self, task: Task) -> None:
        """Nothing can be missing."""

    def load(self, task: Task) -> LanguageModel:
        words = self.words
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.hash64("plan"))
            model = self.shape.untrained(
                max_position_embeddings=self.context, pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id
            )
        return LanguageModel(model.eval(), words, {"source": "plan"})


@spec
class _Canned(Sampler):
    """Says what it is told to, and notes when it is asked."""

    responses: Any
    """Sequence of `Response`."""
    answers: Any
    """How many of them the samples of a prompt say in turn."""
    asked: Any
    """List to which (clock before, clock after) of each call is added."""
    clock: Any

    def __call__(self, lm: LanguageModel, task: Task, prompts: Sequence[Prompt], *, seed: int, step: int) -> Rollout:
        before = self.clock()
        rows = open_rows(lm, prompts, self.samples, seed=seed, step=step)
        for i, row in enumerate(rows):
            prompt, sample = divmod(i, self.samples)
            said: Response = self.responses[(prompt * self.answers + sample % self.answers) % len(self.responses)]
            row.turns, row.finished = list(said.turns), True
            row.tokens, row.chosen = said.tokens[: self.max_tokens], said.chosen[: self.max_tokens]
            row.logp = np.where(row.chosen, -1.0, 0.0).astype(np.float32)
        rollout = collate(rows, lm)
        self.asked.append((before, self.clock()))
        return rollout


def calibrated(  # noqa: PLR0913 - what is run, at what size, in what words
    e: Experiment,
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    shape: Shape,
    work: Workload,
    responses: Sequence[Response],
    words: Any,
) -> Timing:
    """The times of a run of `e` on this machine, without its weights. Takes some seconds for a small model."""
    threads = e.trainer.threads
    # With several threads CPU seconds add up over threads, and only wall seconds say when a run is over.
    clock, named = (time.process_time, "CPU seconds") if threads == 1 else (time.perf_counter, "wall seconds")
    before, held = clock(), peak_bytes()
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    context = getattr(e.model, "max_context_tokens", None) or int(work.prompt_tokens.max()) + e.rollout.max_tokens
    quiet = replace(e, model=_Untrained(shape=shape, words=words, context=context), logger=JsonlLogger())
    bench = _Bench(quiet, config, choices, responses, work.answers, clock)
    step, once = bench.steps(work)
    sampled = bench.sampling(work)
    evaluation, first = bench.evaluation(work)
    total = StepTime(
        rollout=sampled + step.rollout,
        annotate=step.annotate,
        update=step.update,
        warmup_update=step.warmup_update,
        parts={},
    )
    return Timing(total, once + first, evaluation, peak_bytes() - held, clock() - before, named)


@dataclass(frozen=True)
class _Bench:
    experiment: Experiment
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    responses: Sequence[Response]
    answers: int
    clock: Callable[[], float]

    def steps(self, work: Workload) -> tuple[StepTime, float]:
        """A step without its sampling, and what a run takes beside its steps."""
        small, large = self._sizes(work)
        first, once = self._run(small)
        if large == small:
            return first, once
        second, _ = self._run(large)
        wanted = self.experiment.trainer.prompts
        slope = (wanted - small[0]) / (large[0] - small[0])
        pairs = zip(_numbers(first), _numbers(second), strict=True)
        rollout, annotate, update, warmup_update = (a + slope * (b - a) for a, b in pairs)
        return StepTime(rollout, annotate, update, warmup_update, {}), once

    def _sizes(self, work: Workload) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two (prompts, minibatches) that make micro-batches as large as those of the run."""
        e = self.experiment
        prompts, samples = e.trainer.prompts, e.rollout.samples
        minibatches = min(e.trainer.minibatches, prompts * samples)
        unit = max(1, round(prompts / minibatches))  # prompts of one minibatch
        micro = -(-work.micro_rows // samples)
        if unit <= 2 * micro:
            small, large = (min(unit, prompts), 1), (min(2 * unit, prompts), min(2, minibatches))
        else:
            small, large = (min(micro, prompts), 1), (min(2 * micro, prompts), 1)
        return small, large if large[0] > small[0] else small

    def _run(self, size: tuple[int, int]) -> tuple[StepTime, float]:
        """Phases of a step of `size` = (prompts, minibatches), and what the run took beside its steps."""
        e = self.experiment
        asked: list[tuple[float, float]] = []
        warmup, steps = min(2, e.algo.critic.warmup_steps), _STEPS
        trainer = replace(
            e.trainer, prompts=size[0], minibatches=size[1], steps=steps, checkpoint_every=0, store_rollouts_every=0
        )
        run = replace(
            e,
            trainer=trainer,
            algo=replace(e.algo, critic=replace(e.algo.critic, warmup_steps=warmup)),
            rollout=self._canned(asked),
            eval=replace(e.eval, splits=(), hub=(), at_start=False),
            name="plan",
        )
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            began = self.clock()
            replace(run, runs=folder).run(self.config, self.choices)
            ended = self.clock()
            lines = [json.loads(line) for line in (Path(folder) / "plan/timings.jsonl").read_text().splitlines()]
        used = asked[-(warmup + steps) :]  # noise may have asked before
        between = [after[0] - before[1] for before, after in zip(used, used[1:], strict=False)]
        # The first step of its kind pays for what is set up once.
        own = slice(warmup + 1, warmup + steps - 1)
        step = _phases(float(np.median(between[own])), lines[own], 0.0)
        if warmup:
            warm = _phases(between[warmup - 1], lines[warmup - 1 : warmup], 0.0)
            step = replace(step, warmup_update=warm.update)
        inside = warmup * step.warmup_step + steps * step.step
        return step, max(0.0, ended - began - inside)

    def _canned(self, asked: list[Any]) -> _Canned:
        rollout = self.experiment.rollout
        return _Canned(
            samples=rollout.samples,
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            batch_rows=rollout.batch_rows,
            responses=self.responses,
            answers=self.answers,
            asked=asked,
            clock=self.clock,
        )

    def sampling(self, work: Workload) -> float:
        """Sampling one step's responses."""
        lm = self.experiment.model.load(self.experiment.data)
        reading, decoding = self._sampler(lm, work)
        return sum(reading(rows / work.samples) + float(decoding(work.decoded(rows)).sum()) for rows in work.chunks)

    def _sampler(self, lm: LanguageModel, work: Workload) -> tuple[Callable, Callable]:
        """(seconds to read prompts and to book their responses, by prompts; seconds of a decoding step, by rows)."""
        e = self.experiment
        tokens = max(2, min(_DECODED_TOKENS, e.rollout.max_tokens))
        many = max(2, min(_ROWS // e.rollout.samples, e.trainer.prompts))
        few = max(1, many // 4)
        reading, decoding = {}, {}
        for prompts in (few, many):
            short = self._sampled(lm, prompts, 1)
            reading[prompts] = short
            long = self._sampled(lm, prompts, tokens)
            decoding[prompts * e.rollout.samples] = max(0.0, long - short) / (tokens - 1)
        return _line(reading), _line(decoding)

    def _sampled(self, lm: LanguageModel, prompts: int, tokens: int) -> float:
        e = self.experiment
        sampler = replace(e.rollout, max_tokens=tokens)
        pool = list(e.data.prompts("train"))
        times = []
        for step in range(4):
            drawn = draw_prompts(pool, step, prompts, e.seed)
            before = self.clock()
            sampler(lm, e.data, drawn, seed=e.seed, step=step)
            times.append(self.clock() - before)
        return float(np.median(times[1:]))

    def evaluation(self, work: Workload) -> tuple[float, float]:
        """One scoring: its sampling, and what lm-eval takes around it; and what the first one takes beside that."""
        e = self.experiment
        asked = sum(len(benchmark.prompts) for benchmark in e.eval.benchmarks(e.data)) * e.eval.k
        if not asked:
            return 0.0, 0.0
        lm = e.model.load(e.data)
        around, taken = {}, []
        for limit in (_QUESTIONS[0], *_QUESTIONS):  # the first one pays for what is set up once
            with (
                tempfile.TemporaryDirectory() as folder,
                redirect_stdout(io.StringIO()),
                redirect_stderr(io.StringIO()),
            ):
                limited = replace(e.eval, limit=limit)
                questions = sum(len(benchmark.prompts) for benchmark in limited.benchmarks(e.data)) * e.eval.k
                before = self.clock()
                limited.run(
                    lm, e.data, self._canned([]), run_info=_NOBODY, step=0, checkpoint_hash="plan", out_dir=Path(folder)
                )
                taken.append(self.clock() - before)
                around[questions] = taken[-1]
        reading, decoding = self._sampler(lm, work)
        rows = [min(e.rollout.batch_rows, asked - i) for i in range(0, asked, e.rollout.batch_rows)]
        # Every question is read for itself.
        sampled = sum(reading(n) + float(decoding(work.decoded(n)).sum()) for n in rows)
        return float(_line(around)(asked)) + sampled, max(0.0, taken[0] - taken[1])


_NOBODY = {name: "plan" for name in ("run_id", "cell_id", "algo", "noise", "model", "train_domain")} | {"seed": 0}


def _line(points: Mapping[int, float]) -> Callable[[Any], Any]:
    """The straight line through the points of the smallest and the largest number, never falling nor below 0 at 0."""
    (x0, y0), *rest = sorted(points.items())
    if not rest:
        return lambda x: y0 * np.asarray(x) / x0
    x1, y1 = rest[-1]
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    at_zero = max(0.0, y0 - slope * x0)
    return lambda x: at_zero + slope * np.asarray(x)


def _numbers(step: StepTime) -> list[float]:
    return [step.rollout, step.annotate, step.update, step.warmup_update]


def _phases(seconds: float, lines: Sequence[Mapping[str, float]], warmup: float) -> StepTime:
    """`seconds` divided as the clock of the trainer divides its steps. The sampler's own time is in none of them."""
    names = ("time/rollout_s", "time/annotate_s", "time/update_s")
    annotate, update = (float(np.median([line[name] for line in lines])) for name in names[1:])
    share = annotate / (annotate + update)
    return StepTime(0.0, share * seconds, (1 - share) * seconds, warmup, parts={})
