"""How far noise turns each algorithm's gradient away from the clean one: a screen of noise regimes without training.

One policy answers a bank of batches once. Every noise and algorithm then gives each batch advantages, and the
gradient of the algorithm's own policy loss, at the policy that sampled, is compared with the clean gradient of the
other batches, so that no batch is its own measure. Columns, over batches, with 95 % t intervals:

cosine           of the noisy gradient with the clean reference; 0 where a gradient vanishes
sign agreement   share of tokens whose advantage has the sign it would have under clean rewards
signal to noise  mean of the gradient's component along the reference over its standard deviation, by the jackknife

Intervals cover the choice of prompts, rollouts and noise draws, given one critic per cell and one reference. The
reference is itself the gradient of an algorithm: weights that differ from its own count as misalignment though they may
cost nothing in training. This ranks regimes worth a training run; it does not replace the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from noisyrl import checkpoint, rollouts
from noisyrl.algos.base import Algorithm
from noisyrl.alignment_page import Cell, Measured, differences, finite, markdown, summary
from noisyrl.critics.none import NoCritic
from noisyrl.evaluation.run_folder import load_folder
from noisyrl.experience import Collector, Grades, by_length
from noisyrl.experiment import Experiment
from noisyrl.launch import build, resolve
from noisyrl.models.base import LanguageModel
from noisyrl.noise.base import Noise
from noisyrl.ops.masked import keep
from noisyrl.policy import Agent, Critic, Policy
from noisyrl.records import read_manifest, write_atomic
from noisyrl.rollouts import Stored
from noisyrl.session import prepared_noise
from noisyrl.spec import Count, InputError, spec
from noisyrl.tasks.base import batch as draw_prompts
from noisyrl.trainer import Loop, advantage_error
from noisyrl.types import Batch, Credit, Prompt, Rollout, Scores, rows, to_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Data streams no training step takes prompts, samples or noise from.
_STREAMS = {"judge": 10**6, "fit": 2 * 10**6}
_CLEAN = "none"  # the option of conf/noise that changes nothing


@spec
class Screen:
    """The root of conf/probe.yaml."""

    run: str
    """Name of the run's folder; its data, model, sampler, batch sizes and seed are used."""
    runs: str = "runs"
    """Folder that holds all runs."""
    at: Literal["start", "last"] = "start"
    """Which policy samples and is differentiated: the starting one, or that of the newest checkpoint."""
    noises: list[str]
    """Options of conf/noise; overrides of noise and correction may follow in the same string."""
    algos: list[str]
    """Options of conf/algo; overrides of algo may follow in the same string."""
    reference: str = "dr_grpo"
    """The algorithm, written as in `algos`, whose clean gradient is the reference; own = each algorithm's own."""
    batches: Annotated[int, Field(ge=3)] = 24
    """Batches measured on, each as large as a training step's."""
    fit_batches: Count = 20
    """Batches that each critic is fitted to first, under the noise it will be judged under."""

    def __call__(self, conf: Path) -> str:
        """Replays what the run stored, then screens; returns Markdown and writes runs/NAME/alignment.json.

        conf  the folder of config groups
        InputError: no such run, noise or algorithm; no checkpoint for at=last.
        """
        run_dir = Path(self.runs) / self.run
        read_manifest(run_dir)
        config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml")))
        wanted = [(noise, algo) for noise in dict.fromkeys(self.noises) for algo in dict.fromkeys(self.algos)]
        against = {cell: (_CLEAN, cell[1] if self.reference == "own" else self.reference) for cell in wanted}
        cells = list(dict.fromkeys([*against.values(), *wanted]))
        # All of them before a model is loaded: a misspelt name must not cost minutes.
        experiments = {cell: composed(conf, config, *cell) for cell in cells}
        own: Experiment = build(config)
        if own.trainer.threads:
            torch.set_num_threads(own.trainer.threads)
        start = own.model.load(own.data)
        replays = replay(own, start, run_dir)
        policy, step = (start, 0) if self.at == "start" else _newest(run_dir)
        bench = Bench(own, policy, start, run_dir, step)
        judge = bench.bank("judge", self.batches)
        fit = bench.bank("fit", self.fit_batches) if any(_has_critic(e) for e in experiments.values()) else []
        pulls = {cell: bench.pulls(experiments[cell], judge, fit) for cell in tqdm(cells, desc="advantages")}
        measured = measure(bench.policy, judge, pulls, against, own.trainer.micro_rows)
        report = {
            "run": self.run, "at": self.at, "step": step, "reference": self.reference, "batches": self.batches,
            "fit_batches": len(fit), "replayed": replays,
            "cells": summary(measured), "differences": differences(measured),
        }  # fmt: skip
        write_atomic(run_dir / "alignment.json", json.dumps(finite(report), indent=1) + "\n")
        return markdown(report)


def screen_from_config(cfg: DictConfig, conf: Path) -> str:
    """What `src/probe.py` does with conf/probe.yaml. InputError: as `Screen`, or a bad config."""
    return build(resolve(cfg))(conf)


def composed(conf: Path, config: Mapping[str, Any], noise: str, algo: str) -> Experiment:
    """The experiment `config` with another noise, correction and algorithm. InputError: a word is not known."""
    words = [word for group, text in (("noise", noise), ("algo", algo)) for word in _words(group, text)]
    try:
        with _hydra(conf):
            cfg = compose("train", words)
    except HydraException as error:
        said = " ".join(str(error).partition("Config search path")[0].split())
        raise InputError(f"noises, algos: {said}") from error
    with open_dict(cfg):  # references such as ${rollout.max_tokens} then speak of the run
        cfg.update({key: value for key, value in config.items() if key not in ("noise", "correction", "algo")})
    experiment = build(resolve(cfg))
    experiment.algo.check(experiment.rollout.samples)
    experiment.correction.check(experiment.algo)
    return experiment


@contextmanager
def _hydra(conf: Path) -> Iterator[None]:
    """Hydra's one instance set to the configs of a training run; `src/probe.py` has taken it for its own."""
    instance = GlobalHydra.instance()
    taken = instance.hydra
    instance.clear()
    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            yield
    finally:
        instance.hydra = taken


def _words(group: str, text: str) -> list[str]:
    """Hydra's overrides for "option key=value ...". InputError: an override of something else."""
    option, *overrides = text.split() or [""]
    allowed = ("noise", "correction") if group == "noise" else ("algo",)
    for word in overrides:
        if word.lstrip("+~").split("=")[0].split("@")[-1].split(".")[0] not in allowed:
            raise InputError(f"{group}s: {word!r} in {text!r} may only set {' or '.join(allowed)}")
    return [f"{group}={option}", *overrides]


def replay(experiment: Experiment, start: LanguageModel, run_dir: Path) -> dict[int, bool]:
    """Whether the advantages of each stored training step come out again, bit for bit, by step."""
    files = rollouts.step_files(run_dir)
    if not files:
        return {}
    prompts = {prompt.uid: prompt for prompt in experiment.data.prompts("train")}
    noise = prepared_noise(experiment, start, folder=run_dir)
    found = {}
    for step, path in files.items():
        stored = rollouts.read(path, prompts)
        again_BT = rollouts.replayed(stored, noise, experiment.correction, experiment.algo)
        found[step] = stored.advantage_BT is not None and torch.equal(again_BT, stored.advantage_BT)
    return found


@dataclass(frozen=True)
class Pull:
    """What one batch's policy loss asks of its tokens, and how its advantages compare with clean ones."""

    logp_BT: Tensor  # derivative of the loss by each token's log-probability; 0 on rows that were left out
    entropy_BT: Tensor  # and by its entropy
    sign_agreement: float


class Bench:
    """The policy that is differentiated, its bank of rollouts, and critics made for it."""

    def __init__(
        self, experiment: Experiment, lm: LanguageModel, start: LanguageModel, run_dir: Path, step: int
    ) -> None:
        """lm: the policy; start: the one its run began with; step: of the policy, names its bank."""
        self.experiment = experiment
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.lm, self.start = lm, start
        for each in (lm, start):
            each.model.to(self.accelerator.device).eval()
        self.policy = Policy(lm.model, temperature=experiment.rollout.temperature)
        self.run_dir, self.step = run_dir, step
        self.met: dict[str, Prompt] = {}

    def bank(self, kind: str, count: int) -> list[Stored]:
        """The first `count` batches of a kind, judge or fit; what is not on disk yet is sampled and kept."""
        prompts = list(self.experiment.data.prompts("train"))
        by_uid = {prompt.uid: prompt for prompt in prompts}
        found = []
        for number in tqdm(range(count), desc=f"rollouts to {kind}"):
            path = self.run_dir / "rollouts" / f"bank_{self.step:06d}_{kind}_{number:04d}.npz"
            if not path.exists():
                rollouts.write(path, self._sampled(prompts, _STREAMS[kind] + number))
            found.append(rollouts.read(path, by_uid))
            self.met |= {prompt.uid: prompt for prompt in found[-1].evidence.rollout.prompts}
        return found

    def _sampled(self, prompts: list[Prompt], stream: int) -> Stored:
        e = self.experiment
        drawn = draw_prompts(prompts, stream, e.trainer.prompts, e.seed)
        collector = self._collector(e, e.noise, torch.nn.Identity(), None)
        rollout, grades = collector.sample(drawn, stream)
        return rollouts.unannotated(rollout, grades.clean_B, grades.statuses, stream)

    def pulls(self, experiment: Experiment, judge: Sequence[Stored], fit: Sequence[Stored]) -> list[Pull]:
        """What `experiment`'s noise and algorithm make of each batch of `judge`; a critic is first fitted to `fit`."""
        loop = self._loop(experiment)
        for stored in fit if loop.has_critic else ():
            loop.learn(self._experience(loop, stored).batch, stored.stream, step=-1)
        found = []
        for stored in judge:
            experience = self._experience(loop, stored)
            credit = loop.credit(experience.batch)
            clean_BT = loop.algo.advantages(experience.clean_batch)
            agreement = advantage_error(credit, clean_BT, experience.batch)["noise/advantage_sign_agreement"]
            found.append(pull(loop.algo, experience.batch, credit, experience.ledger.kept, stored, agreement))
        return found

    def _experience(self, loop: Loop, stored: Stored):
        evidence = to_device(stored.evidence, self.accelerator.device)
        grades = Grades(evidence.clean_B, evidence.statuses)
        experience = loop.collector.annotate(evidence.rollout, grades, stored.stream, loop.progress.correction)
        loop.progress.correction = dict(experience.memory)
        return experience

    def _loop(self, e: Experiment) -> Loop:
        """A training loop around the policy with a fresh critic; only the critic will move."""
        policy = Policy(self.lm.model, temperature=e.rollout.temperature)
        agent = Agent(policy, Critic(e.algo.critic, policy, seed=e.seed)).to(self.accelerator.device)
        reference = None
        if e.algo.needs_reference:
            reference = Policy(self.start.model, temperature=e.rollout.temperature)
            reference.keep_hidden = agent.critic.head.reads_reference
        noise = prepared_noise(e, self.start, folder=None, met=list(self.met.values()))
        optimizer = e.trainer.optimizer(e.algo, agent)
        collector = self._collector(e, noise, agent, reference)
        return Loop(trainer=e.trainer, algo=e.algo, collector=collector, optimizer=optimizer, prompts=[], seed=e.seed)

    def _collector(self, e: Experiment, noise: Noise, agent: torch.nn.Module, reference: Policy | None) -> Collector:
        return Collector(
            accelerator=self.accelerator, lm=self.lm, task=e.data, sampler=e.rollout, noise=noise,
            correction=e.correction, grader_deadline_s=e.trainer.grader_deadline_s, agent=agent, reference=reference,
            micro_rows=e.trainer.micro_rows, seed=e.seed,
        )  # fmt: skip


def pull(algo: Algorithm, batch: Batch, credit: Credit, kept: Tensor, stored: Stored, sign_agreement: float) -> Pull:
    """The policy loss differentiated by what a policy says of the batch, where that policy is the one that sampled.

    kept  [N] int64, the batch's rows among all rows of `stored`
    """
    logp_NT = batch.logp_BT.detach().clone().requires_grad_()
    entropy_NT = torch.zeros_like(logp_NT).requires_grad_()  # the loss is linear in it
    scores = Scores(logp_NT, entropy_NT, logp_NT.new_zeros(*logp_NT.shape, 0))
    loss_NT = keep(algo.policy_loss(scores, batch, credit).total_BT, batch.mask_BT)
    total = (algo.token_weights(batch.mask_BT) * loss_NT).sum()
    found = torch.autograd.grad(total, (logp_NT, entropy_NT), allow_unused=True, materialize_grads=True)
    everything_BT = torch.zeros_like(stored.evidence.rollout.logp_BT).to(logp_NT)
    logp_BT, entropy_BT = (everything_BT.index_copy(0, kept, x_NT) for x_NT in found)
    return Pull(logp_BT, entropy_BT, sign_agreement)


def gradients(policy: Policy, rollout: Rollout, pulls: Sequence[Pull], micro_rows: int) -> Tensor:
    """[C, P] gradient of each pull's loss by all parameters of the policy, flattened; one forward pass serves all."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    total_CP = torch.zeros(len(pulls), sum(p.numel() for p in parameters)).to(parameters[0])
    for index in by_length(rollout).split(micro_rows):
        scores = policy(rows(rollout, index))
        for gradient_P, one in zip(total_CP, pulls, strict=True):
            outputs, weights = [scores.logp_BT], [one.logp_BT[index]]
            if one.entropy_BT.any():
                outputs, weights = [*outputs, scores.entropy_BT], [*weights, one.entropy_BT[index]]
            found = torch.autograd.grad(outputs, parameters, weights, retain_graph=True, materialize_grads=True)
            gradient_P += torch.cat([x.flatten() for x in found])
    return total_CP


def measure(
    policy: Policy,
    bank: Sequence[Stored],
    pulls: Mapping[Cell, Sequence[Pull]],
    against: Mapping[Cell, Cell],
    micro_rows: int,
) -> Measured:
    """Every cell of `against` on every batch: cosine and component along the reference, the cell it is mapped to.

    The reference of a batch is the sum of the reference cell's gradients of all other batches.
    """
    device = next(policy.parameters()).device
    batches = [to_device(stored.evidence.rollout, device) for stored in bank]
    references = list(dict.fromkeys(against.values()))
    total_RP: Tensor | float = 0.0
    for number, rollout in enumerate(tqdm(batches, desc="reference gradients")):
        total_RP = total_RP + gradients(policy, rollout, [pulls[cell][number] for cell in references], micro_rows)
    assert isinstance(total_RP, Tensor), "there are batches"
    cells = list(dict.fromkeys([*references, *against]))
    found: dict[Cell, list[tuple[float, ...]]] = {cell: [] for cell in against}
    for number, rollout in enumerate(tqdm(batches, desc="gradients")):
        each_CP = gradients(policy, rollout, [pulls[cell][number] for cell in cells], micro_rows)
        others = {cell: total_RP[i] - each_CP[cells.index(cell)] for i, cell in enumerate(references)}
        for cell, reference in against.items():
            one = pulls[cell][number]
            compared = compare(each_CP[cells.index(cell)], others[reference])
            found[cell].append((*compared, one.sign_agreement))
    names = ("cosine", "component", "sign_agreement")
    return {
        cell: {name: np.array(column) for name, column in zip(names, zip(*values, strict=True), strict=True)}
        for cell, values in found.items()
    }


def compare(gradient_P: Tensor, reference_P: Tensor) -> tuple[float, float]:
    """Cosine with the reference, and component along it in units of the gradient; 0 where one of them vanishes."""
    product = float(gradient_P.double() @ reference_P.double())
    length, unit = float(gradient_P.double().norm()), float(reference_P.double().norm())
    return (product / (length * unit) if length * unit else 0.0), (product / unit if unit else 0.0)


def _newest(run_dir: Path) -> tuple[LanguageModel, int]:
    found = checkpoint.saved(run_dir / "checkpoints")
    if not found:
        raise InputError(f"{run_dir}/checkpoints holds no checkpoint: set at=start, or let the run get that far")
    checkpoint.verify(found[-1])
    return load_folder(found[-1]), int(found[-1].name.removeprefix("step_"))


def _has_critic(experiment: Experiment) -> bool:
    return not isinstance(experiment.algo.critic, NoCritic)
