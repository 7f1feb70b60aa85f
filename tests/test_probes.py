"""Snapshots of the critic on fixed prompts, and the returns beside them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from noisyrl import probes, rng
from noisyrl.experience import Collector
from noisyrl.models.base import LanguageModel
from noisyrl.rollout.fast import FastSampler
from noisyrl.spec import InputError, spec
from noisyrl.tasks.base import Task
from noisyrl.tasks.math import Chains
from noisyrl.types import Grade, Prompt
from tests.evaluation.stage import random_model
from tests.frame import built, loop_for, made_up_rollout
from tests.short_run import graded_by_chance, save_model, start


class Words:
    """A tokenizer that knows one prompt per number."""

    chat_template = "{}"

    def apply_chat_template(self, messages, **_):
        return list(range(1, 2 + int(messages[0]["content"])))


def loop_and_lm():
    loop = loop_for(built("algo", "algo=dvpo"))
    return loop, LanguageModel(loop.collector.agent.policy.model, Words(), {})


def test_a_snapshot_is_the_value_before_the_first_response_token(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "prompt_tokens", lambda tokenizer, p, **_: tokenizer.apply_chat_template(p.messages))
    loop, lm = loop_and_lm()
    prompts = [Prompt(({"role": "user", "content": str(i)},), "", "made-up", f"p{i}", "made-up") for i in (3, 0, 2)]
    arrays = probes.snapshot(loop.collector.agent, lm, prompts)
    assert arrays["quantiles"].shape == (3, 3, 200) and arrays["ensemble"].shape == (3, 200)
    assert list(arrays["uid"]) == ["p3", "p0", "p2"]
    # The second prompt alone, followed by some response: its first value is the same.
    rollout = made_up_rollout(prompts=1, samples=1)
    tokens, attention = torch.full((1, 13), 7), torch.ones(1, 13, dtype=torch.bool)
    tokens[0, 3], attention[0, :3] = 1, False
    mask = torch.ones(1, 9, dtype=torch.bool)
    alone = type(rollout)(**{**vars(rollout), "tokens_BL": tokens, "attention_BL": attention, "mask_BT": mask})
    _, value = loop.collector.agent(alone)
    assert_close(torch.from_numpy(arrays["mean"])[1], value.mean_BT[0, 0].detach().float(), atol=1e-6, rtol=0)
    probes.write(tmp_path / "probes/step_000001.npz", arrays)
    with np.load(tmp_path / "probes/step_000001.npz") as stored:  # allow_pickle is off
        assert np.array_equal(stored["quantiles"], arrays["quantiles"])
    assert [path.name for path in (tmp_path / "probes").iterdir()] == ["step_000001.npz"]


@spec
class Chance(Task):
    """Graded by the words alone: a sixth cannot be, of the others half are right."""

    train_only: bool = False

    @property
    def splits(self):
        return ("train",) if self.train_only else ("train", "test", "ood")

    def prompts(self, split):
        return [
            Prompt(({"role": "user", "content": f"{i}"},), "", "chance", f"{split}/{i}", "chance") for i in range(9)
        ]

    def grade(self, prompt, turns):
        drawn = rng.uniform("grade", *turns)
        return Grade(None, "error") if drawn < 1 / 6 else Grade(float(drawn < 7 / 12))


SAMPLER = FastSampler(samples=4, max_tokens=12)
NOISE = ["noise=chain", "noise@noise.first=flip0.3", "noise.first.unit=group", "noise@noise.second=dropout"]


def collector(noise=("noise=none",), task=None, correction="none"):
    return Collector(
        accelerator=Accelerator(cpu=True), lm=random_model(), task=task or Chance(), sampler=SAMPLER,
        noise=built("noise", *noise), correction=built("correction", f"correction={correction}"),
        agent=torch.nn.Identity(), reference=None, micro_rows=8, seed=3,
    )  # fmt: skip


def returns(made, samples=32, step=20, memory=()):
    prompts = probes.choose(made.task, made.noise, made.task.prompts("train"))
    return probes.continuations(made, prompts, replace(SAMPLER, samples=samples), step=step, memory=dict(memory))


def test_continuations_meet_grader_and_noise_as_one_group_per_prompt():
    arrays = returns(collector(NOISE))
    clean, observed = arrays["clean"], arrays["observed"]
    assert clean.shape == observed.shape == (8, 32) and set(np.unique(clean[np.isfinite(clean)])) == {0, 1}
    assert 0 < np.isnan(clean).mean() < 0.4 and np.isnan(observed[np.isnan(clean)]).all()
    assert np.isnan(observed).sum() > np.isnan(clean).sum()  # some rewards went missing
    flipped = [set((c != o)[np.isfinite(o)]) for c, o in zip(clean, observed, strict=True)]
    assert all(len(kinds) == 1 for kinds in flipped) and {True} in flipped and {False} in flipped
    assert np.array_equal(arrays["used"], observed, equal_nan=True)
    assert arrays["tolerance"] == np.float32(0.05)


def test_draws_are_repeated_at_a_step_and_others_at_another():
    made = collector(NOISE)
    first, again, later = returns(made), returns(made), returns(made, step=40)
    for name, x in first.items():
        assert np.array_equal(x, again[name], equal_nan=True)
    assert not np.array_equal(first["clean"], later["clean"], equal_nan=True)
    assert not np.array_equal(first["observed"] != first["clean"], later["observed"] != later["clean"])
    few = returns(made, samples=5)
    assert np.array_equal(few["clean"], first["clean"][:, :5], equal_nan=True)  # a sample is the same among others


def test_no_response_of_training_is_sampled_again(monkeypatch):
    made, said = collector(task=Chance(train_only=True)), []
    prompts = made.task.prompts("train")
    trained = SAMPLER(made.lm, made.task, prompts, seed=made.seed, step=20).turns
    monkeypatch.setattr(Chance, "grade", lambda self, prompt, turns: said.append(tuple(turns)) or Grade(1.0))
    probes.continuations(made, prompts, SAMPLER, step=20, memory={})
    assert len(said) == len(trained) and not set(said) & {tuple(turns) for turns in trained}


def test_noise_that_drifts_is_that_of_the_step_before_the_snapshot():
    noise = ["noise=bias", "noise.wrong=0", "noise.right=0", "noise.drift=0.5"]
    for step, shift in ((0, 0), (1, 0), (20, 9.5)):
        arrays = returns(collector(noise), samples=2, step=step)
        assert np.allclose(arrays["observed"], arrays["clean"] + shift, equal_nan=True)


def test_a_correction_is_stored_beside_what_was_observed():
    arrays = returns(collector(["noise=flip0.3"], correction="backward0.3"), samples=8)
    right = arrays["observed"] == 1
    assert_close(torch.from_numpy(arrays["used"][right]).unique(), torch.tensor([0.7 / 0.4]))


def test_labels_are_known_of_training_prompts_alone():
    task, first = Chance(), Chance().prompts("train")
    assert [p.uid for p in probes.choose(task, built("noise", "noise=flip0.3"), first)][:2] == ["test/0", "test/1"]
    assert probes.choose(task, built("noise", "noise=labels"), first) == first[:8]
    chained = built("noise", "noise=chain", "noise@noise.first=labels", "noise@noise.second=gaussian")
    assert probes.choose(task, chained, first) == first[:8]


def files(run, *names):
    found = sorted(file for name in names for file in [run / name, *(run / name).rglob("*")] if file.is_file())
    return {str(file.relative_to(run)): file.read_bytes() for file in found}


def test_training_does_not_notice_and_a_resumed_run_repeats_them(tmp_path, monkeypatch):
    graded_by_chance(monkeypatch)
    save_model(tmp_path / "model")
    words = ["algo=dvpo", "algo.critic.warmup_steps=1", "noise=length_zscore", "trainer.keep_last=2"]
    trained = ("metrics.jsonl", "ledger.jsonl", "checkpoints", "rollouts")
    without = start(tmp_path / "without", tmp_path / "model", *words, "trainer.probe_continuations=0")
    run = start(tmp_path / "with", tmp_path / "model", *words, "trainer.probe_continuations=4")
    assert files(run, *trained) == files(without, *trained)
    before = files(run, "probes")
    assert list(before) == [f"probes/step_{step:06d}.npz" for step in (0, 1, 2)]
    for name in before:
        with np.load(run / name) as found, np.load(without / name) as bare:
            assert found["observed"].shape == found["clean"].shape == (len(found["uid"]), 4)
            assert set(found) - set(bare) == {"clean", "observed", "used", "tolerance"}
            assert np.array_equal(found["ensemble"], bare["ensemble"])
    shutil.rmtree(run / "checkpoints/step_000002")
    shutil.rmtree(run / "probes")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    start(tmp_path / "with", tmp_path / "model", *words, "trainer.probe_continuations=4")
    assert files(run, "probes")["probes/step_000002.npz"] == before["probes/step_000002.npz"]


def test_a_dialogue_and_wrong_labels_from_beginning_to_end(tmp_path, monkeypatch):
    save_model(tmp_path / "model")
    words = ["data=dialogue", "rollout.max_tokens=24", "algo=ppo", "noise=labels", "trainer.probe_continuations=3"]
    run = start(tmp_path / "runs", tmp_path / "model", *words)
    with np.load(run / "probes/step_000002.npz") as found:
        assert np.isfinite(found["observed"]).all() and found["observed"].shape == (4, 3)  # a step has four prompts
        assert all("train" in uid for uid in found["uid"])


def test_a_probe_prompt_without_room_for_a_response_is_refused(tmp_path, monkeypatch):
    save_model(tmp_path / "model")
    usual = Chains.prompts

    def prompts(self, split):
        long = {"role": "user", "content": "1" * 510}
        return [replace(p, messages=(long,)) if split == "test" else p for p in usual(self, split)]

    monkeypatch.setattr(Chains, "prompts", prompts)
    with pytest.raises(InputError, match="^prompt .*/test/.* tokens, but the model's context of 512"):
        start(tmp_path / "runs", tmp_path / "model", "algo=ppo")


def test_nothing_that_can_be_graded_is_no_return(monkeypatch):
    monkeypatch.setattr(Chance, "grade", lambda self, prompt, turns: Grade(None, "timeout"))
    arrays = returns(collector(NOISE), samples=2)
    assert all(np.isnan(arrays[name]).all() for name in ("clean", "observed", "used"))
