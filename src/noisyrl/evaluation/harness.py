"""Scoring: lm-eval runs our benchmarks on our sampler; the outcome becomes files in the run folder.

Departures from plain lm-eval: `lm_eval.evaluate` is called without `simple_evaluate` around it, which reseeds the
global generators and lists the installed packages; answers that could not be graded count 0 and are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noisyrl.evaluation.benchmarks import LM_TASKS, Benchmark, digest, find
from noisyrl.evaluation.isolation import undisturbed
from noisyrl.models.base import LanguageModel
from noisyrl.rollout.base import Sampler
from noisyrl.rollout.chat import prompt_tokens
from noisyrl.spec import Count, InputError, Natural, NonNegative, spec
from noisyrl.tasks.base import Task
from noisyrl.tasks.decontaminate import refuse_unchecked
from noisyrl.tasks.hub import HubTask, benchmark_task
from noisyrl.tasks.hub_train import HubTraining
from noisyrl.tasks.sgd.task import Sgd

if TYPE_CHECKING:
    from noisyrl.evaluation.rows import Protocol, Subject
    from noisyrl.evaluation.sampler_lm import Progress, SamplerLM

ASKED = ("protocol", "k", "temperature", "max_tokens", "enable_thinking", "splits", "hub", "limit", "seed")
"""Fields of an Evaluation that say how questions are asked; with the answers, all that grading needs."""


@spec
class Evaluation:
    """What `eval=` configures: which questions are asked, how, and when."""

    protocol: Literal["greedy", "avgk"] = "greedy"
    """How answers are drawn. greedy: the likeliest token each time, one answer, no random draw. avgk: `k` answers to
    each question, sampled; scores are means over them, with pass@j and maj@k beside (evaluation/repeats.py)."""
    k: Count = 1
    """Answers per question; 1 for greedy."""
    temperature: NonNegative = 0.0
    """Of sampling, > 0 for avgk; 0 for greedy."""
    max_tokens: Count | None = None
    """Longest answer in tokens; None = rollout.max_tokens, what the run was trained with."""
    enable_thinking: bool | None = None
    """Whether a model with a thinking mode is to think; None = as in training, rollout.enable_thinking."""
    splits: tuple[Literal["test", "ood"], ...] = ("test", "ood")
    """Held-out splits; those a task does not have are passed over."""
    hub: tuple[str, ...] = ()
    """Public benchmarks asked beside them, from local copies: names of tasks/hub.py; `make data` lists them. One
    that the splits hold already is asked once, and a run trained on SGD is asked the dialogues that itself held out."""
    limit: Count | None = None
    """Questions per benchmark, the first ones; None = all. A limited evaluation is marked as such in every table."""
    at_start: bool = True
    """Score the policy before the first training step too; the tables' row "start"."""
    every_steps: Natural = 0
    """Training steps between evaluations; 0 = none between start and end."""
    seed: Natural = 0
    """Keys the draws of an answer, with its question and number; greedy answers do not depend on it."""
    keep_text: bool = False
    """Store every answer in texts.jsonl.gz, some ten kB per 1000 short answers, so that `make regrade` can grade it
    again. Those to gated benchmarks are never stored. An evaluation that is there without its texts is made again."""

    def __post_init__(self) -> None:
        if self.protocol == "greedy" and (self.k, self.temperature) != (1, 0):
            raise ValueError(
                f"greedy gives one answer at temperature 0, not k={self.k} at {self.temperature}: set protocol=avgk"
            )
        if self.protocol == "avgk" and self.temperature == 0:
            raise ValueError(
                "avgk at temperature 0 would give the same answer k times: set temperature, 1.0 for example"
            )

    def due(self, step: int) -> bool:
        """Whether to score after `step` training steps, 0 = before the first. After the last one, always."""
        return self.at_start if step == 0 else self.every_steps > 0 and step % self.every_steps == 0

    def run(  # noqa: PLR0913 - the whole occasion: what is scored, on what, whose it is, and where results go
        self,
        lm: LanguageModel,
        task: Task,
        sampler: Sampler,
        *,
        run_info: Mapping[str, Any],
        step: int,
        checkpoint_hash: str,
        out_dir: Path,
        progress: Progress | None = None,
    ) -> Mapping[str, float]:
        """Score `lm` on the held-out splits of `task` and store the outcome in out_dir/<eval_id>/.

        run_info         run_id, cell_id, seed, algo, noise, model, train_domain
        step             training steps done
        checkpoint_hash  of the weights of `lm`
        progress         called with (answers given, answers in all)
        returns          {"<benchmark>/<metric>": fraction}, as `scores_in`; {} with nothing held out

        InputError: as `stored`.
        """
        from noisyrl.evaluation.rows import Subject

        subject = Subject(**run_info, step=step, checkpoint_hash=checkpoint_hash)
        folder = self.stored(lm, task, sampler, subject=subject, out_dir=out_dir, progress=progress)
        return {} if folder is None else scores_in(folder)

    def stored(
        self,
        lm: LanguageModel,
        task: Task,
        sampler: Sampler,
        *,
        subject: Subject,
        out_dir: Path,
        progress: Progress | None = None,
    ) -> Path | None:
        """The folder out_dir/<eval_id>/ with the outcome, made unless it is there; None with nothing held out.

        The eval_id names everything that decides the outcome, so an evaluation that is already there is read instead
        of repeated. `sampler` gives engine and length limit; its temperature and sample count are not used. Nothing
        outside out_dir is changed: generators, the model's mode and logging are put back.
        InputError: two prompts with one uid, or the stored files are damaged.
        """
        with undisturbed(lm.model):
            from noisyrl.evaluation import store

            benchmarks = self.benchmarks(task)
            if not benchmarks:
                return None
            sampler = self.sampler_for(sampler)
            folder = out_dir / self.eval_id(benchmarks, sampler.max_tokens, subject)
            texts_due = self.keep_text and not all(benchmark.gated for benchmark in benchmarks)
            if not store.is_complete(folder) or (texts_due and not store.has_texts(folder)):
                from noisyrl.evaluation.sampler_lm import SamplerLM

                # Prompts of the run's own task were seen to fit when it began.
                unseen = [each for each in benchmarks if self.max_tokens is not None or each.source is not task]
                check_room(lm, sampler, unseen)
                player = SamplerLM(
                    lm, sampler, seed=self.seed, k=self.k, temperature=self.temperature, progress=progress
                )
                self._score(player, benchmarks, subject, folder)
            return folder

    def benchmarks(self, task: Task) -> list[Benchmark]:
        """What is asked of a run trained on `task`.

        InputError: a public benchmark is unknown or not there, or public training questions were not compared with it.
        """
        if isinstance(task, HubTraining):
            refuse_unchecked(task.origin, self.public)
        field = task.field if isinstance(task, HubTraining | Sgd) else None
        found = {each.name: each for each in find(task, self.splits, self.limit)}
        for source in self.public:
            foreign = field is not None and source.field != field
            asked = task if isinstance(task, Sgd) and isinstance(source, Sgd) else source
            for each in find(asked, ("test", "ood"), self.limit):
                found.setdefault(each.name, replace(each, foreign=foreign))
        return list(found.values())

    @cached_property
    def public(self) -> tuple[HubTask | Sgd, ...]:
        """The tasks behind `hub`, each with its files read once. InputError: a benchmark is unknown."""
        return tuple(benchmark_task(name) for name in self.hub)

    def sampler_for(self, of_run: Sampler) -> Sampler:
        """The run's sampler with this evaluation's own limits, where it has some."""
        thinking = of_run.enable_thinking if self.enable_thinking is None else self.enable_thinking
        limit = self.max_tokens or of_run.max_tokens
        return replace(of_run, max_tokens=limit, enable_thinking=thinking)  # type: ignore[type-var] # pydantic

    def eval_id(self, benchmarks: Sequence[Benchmark], max_tokens: int, subject: Subject) -> str:
        """16 hex digits over the weights, the questions, how they are asked, and how answers are graded."""
        from noisyrl.evaluation.store import SCHEMA_VERSION

        asked = [[b.name, b.split, b.scorer, b.version, b.content_hash, *b.graders] for b in benchmarks]
        how: list[Any] = [self.protocol, self.seed, self.limit, max_tokens]
        how += [] if self.protocol == "greedy" else [self.k, self.temperature]
        how += [] if self.enable_thinking is None else [{"enable_thinking": self.enable_thinking}]
        return digest([subject.checkpoint_hash, subject.step, asked, how, SCHEMA_VERSION])

    def described(self, eval_id: str, *, max_tokens: int, lm_eval_version: str) -> Protocol:
        """What every row says of how the questions were asked."""
        from noisyrl.evaluation.rows import Protocol

        return Protocol(
            eval_id=eval_id,
            name=self.protocol,
            limit=self.limit,
            max_new_tokens=max_tokens,
            lm_eval_version=lm_eval_version,
            k=self.k,
            temperature=self.temperature,
        )

    def _score(self, player: SamplerLM, benchmarks: Sequence[Benchmark], subject: Subject, folder: Path) -> None:
        from lm_eval import __version__

        from noisyrl.evaluation import rows, store

        how = {"max_tokens": player.sampler.max_tokens, "lm_eval_version": __version__}
        answered = play(player, benchmarks)
        protocol = self.described(folder.name, **how)
        samples, aggregate = [], []
        for benchmark in benchmarks:
            part = rows.sample_rows(subject, protocol, benchmark, answered[benchmark.name])
            samples += part
            aggregate += rows.aggregate_rows(subject, protocol, benchmark, part)
        meta = {
            "subject": asdict(subject),
            "engine": type(player.sampler).__name__,
            "asked": {key: getattr(self, key) for key in ASKED},
            **how,
        }
        gated = {benchmark.name for benchmark in benchmarks if benchmark.gated}
        texts = [text for text in _texts(player) if text["benchmark"] not in gated] if self.keep_text else ()
        if texts and store.is_complete(folder) and not store.has_texts(folder):
            store.set_aside(folder)
        store.write(folder, aggregate=aggregate, samples=samples, meta=meta, texts=texts)


def play(player: SamplerLM, benchmarks: Sequence[Benchmark]) -> dict[str, list[Any]]:
    """Run lm-eval: {benchmark name: its `Answered`, in the order of its prompts, all answers to a prompt together}."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from noisyrl.evaluation.lm_task import LIVE, config_for
    from noisyrl.evaluation.rows import Answered

    live = {LIVE: {benchmark.name: benchmark for benchmark in benchmarks}}
    manager = TaskManager(include_path=str(LM_TASKS), include_defaults=False, metadata=live)
    samples = player.sampler.samples
    loaded = manager.load([config_for(benchmark, samples) for benchmark in benchmarks])
    results = lm_eval.evaluate(player, loaded, bootstrap_iters=0, apply_chat_template=True, log_samples=True)
    answered = {}
    for benchmark in benchmarks:
        grades = loaded["tasks"][benchmark.name].grades
        logged = {sample["doc"]["uid"]: sample["arguments"][0][0] for sample in results["samples"][benchmark.name]}
        answered[benchmark.name] = [
            Answered(player.generations[benchmark.name, prompt.uid, i], grades[prompt.uid][i], logged[prompt.uid])
            for prompt in benchmark.prompts
            for i in range(samples)
        ]
    return answered


def check_room(lm: LanguageModel, sampler: Sampler, benchmarks: Iterable[Benchmark]) -> None:
    """InputError: a question and a full answer do not fit the model's context."""
    room = lm.max_context - sampler.max_tokens
    for prompt in (prompt for benchmark in benchmarks for prompt in benchmark.prompts):
        length = len(prompt_tokens(lm.tokenizer, prompt, thinking=sampler.enable_thinking))
        if length > room:
            raise InputError(
                f"question {prompt.uid} has {length} tokens, but the model's context of {lm.max_context} leaves "
                f"{room} beside eval.max_tokens={sampler.max_tokens}: lower that, or leave the benchmark out"
            )


def scores_in(folder: Path) -> dict[str, float]:
    """{"<benchmark>/<metric>": fraction} of a stored evaluation, with the metrics of `repeats.metrics`."""
    from noisyrl.evaluation import store

    return {f"{row['benchmark']}/{row['metric']}": row["value"] for row in store.read_aggregate(folder)}


def _texts(player: SamplerLM) -> list[dict[str, Any]]:
    return [
        {"benchmark": name, "qid": uid, "repeat": repeat, "turns": list(generation.turns)}
        for (name, uid, repeat), generation in player.generations.items()
    ]
