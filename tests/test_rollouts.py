"""Stored rollouts: nothing is lost on the way to disk and back, and advantages come out again bit for bit."""

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from noisyrl import rng, rollouts, session
from noisyrl.rollouts import read, replayed, rewind, step_file, step_files, trimmed, unannotated, write
from noisyrl.spec import InputError
from noisyrl.types import Grade
from tests.frame import built, composed, loop_for, made_up_rollout, options
from tests.short_run import graded_by_chance, save_model, start

NAMED = {prompt.uid: prompt for prompt in made_up_rollout().prompts}
UNREAD = {"dvpo": ["ensemble_BTM", "heads_BTH"], "robust_bellman/tv": ["heads_BTH"], "vrpo": ["nll_BT"]}
READ = {"robust_bellman": ["heads_BTH"], "robust_bellman/tv": ["ensemble_BTM"], "rfqi": ["threshold_BT"]}


class ByChance:
    """Grades texts by their hash; one in eight cannot be scored."""

    def grade(self, prompt, turns):
        draw = rng.uniform("grade", turns[-1])
        return Grade(None, "error") if draw < 0.125 else Grade(float(draw < 0.5))


def made_up(lm, task, prompts, *, seed, step):
    rollout = made_up_rollout(seed=step)
    return replace(rollout, turns=[(f"step {step} row {row}",) for row in range(len(rollout.turns))])


@cache
def steps_of(algo, *overrides, noise="flip0.3", correction="none"):
    """What two training steps store, and the loop that made it."""
    loop = loop_for(built("algo", f"algo={algo}", *overrides))
    config = composed(f"noise={noise}", f"correction={correction}")
    parts = {group: instantiate(config[group], _convert_="all") for group in ("noise", "correction")}
    loop.collector = replace(loop.collector, sampler=made_up, task=ByChance(), **parts)
    loop.prompts, loop.trainer = list(NAMED.values()), replace(loop.trainer, steps=2, prompts=4, store_rollouts_every=1)
    stored = {}
    loop.store = stored.__setitem__
    assert len(list(loop.steps())) == 2 + loop.algo.critic.warmup_steps
    assert list(stored) == [1, 2], "critic warm-up is not stored"
    return stored, loop


WARM = "algo.critic.warmup_steps=1"
KL = ("algo.kl_coef=0.1", "algo.kl_in=reward", "algo.kl_estimator=k1")
CASES = [(name, ()) for name in ("grpo", "dr_grpo", "reinforce_pp")] + [("ppo", (WARM, *KL))]
CASES += [(name, (WARM,)) for name in ("ppo", "dvpo", "robust_bellman", "robust_bellman/tv", "vrpo", "rfqi", "cql")]


@pytest.mark.parametrize(("algo", "overrides"), CASES, ids=lambda x: x if isinstance(x, str) else f"{len(x)}")
def test_advantages_come_out_again_bit_for_bit(algo, overrides, tmp_path):
    stored, loop = steps_of(algo, *overrides)
    parts = (loop.collector.noise, loop.collector.correction, loop.algo)
    for step, one in stored.items():
        write(step_file(tmp_path, step), trimmed(one, *parts))
        back = read(step_file(tmp_path, step), NAMED)
        assert torch.equal(replayed(back, *parts), one.advantage_BT) and torch.equal(
            back.advantage_BT, one.advantage_BT
        )
        assert back.memory == one.memory and one.advantage_BT.abs().max() > 0
        for name in UNREAD.get(algo, []):
            assert getattr(back.evidence.value, name).isnan().all(), name
        mask_BT = back.evidence.rollout.mask_BT
        for name in READ.get(algo, []):
            kept, whole = (getattr(x.evidence.value, name) for x in (back, one))
            assert torch.equal(kept[mask_BT], whole[mask_BT]), name


def test_other_noise_gives_other_advantages(tmp_path):
    stored, loop = steps_of("ppo", WARM)
    other = built("noise", "noise=flip0.3", "noise.seed=7")
    assert not torch.equal(replayed(stored[1], other, loop.collector.correction, loop.algo), stored[1].advantage_BT)


@pytest.mark.parametrize("correction", [name for name in options("correction") if name not in ("forward", "backward")])
def test_what_a_correction_remembers_is_stored(correction, tmp_path):
    stored, loop = steps_of("grpo", correction=correction)
    for step, one in stored.items():
        write(step_file(tmp_path, step), one)
        back = read(step_file(tmp_path, step), NAMED)
        again_BT = replayed(back, loop.collector.noise, loop.collector.correction, loop.algo)
        assert torch.equal(again_BT, one.advantage_BT) and back.correction == one.correction


def test_nothing_is_lost_on_the_way_to_disk_and_back(tmp_path):
    made = made_up_rollout(dtype=torch.float32)
    turns = [(f'say "{row}"\n', "Ünïcødé 😀 漢", "") for row in range(16)]
    made = replace(made, turns=turns, key_B=torch.arange(16) - 2**63)
    clean_B = torch.tensor([float("nan"), 0.1, *[1.0] * 14])
    write(tmp_path / "a.npz", unannotated(made, clean_B, ["error", *["scored"] * 15], 12))
    back = read(tmp_path / "a.npz", NAMED)
    assert back.stream == 12 and back.advantage_BT is None and back.evidence.reference is None
    assert back.evidence.statuses == ["error", *["scored"] * 15]
    assert torch.equal(back.evidence.clean_B.nan_to_num(-1), clean_B.nan_to_num(-1))
    for field in fields(made):
        there, here = getattr(back.evidence.rollout, field.name), getattr(made, field.name)
        if isinstance(here, torch.Tensor):
            assert torch.equal(there, here) and there.dtype == here.dtype, field.name
        else:
            assert list(there) == list(here), field.name
    with np.load(tmp_path / "a.npz") as file:
        assert not [name for name in file if file[name].dtype.hasobject]
    write(tmp_path / "b.npz", back)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_damage_and_other_data_are_named(tmp_path):
    path = tmp_path / "a.npz"
    write(path, unannotated(made_up_rollout(), torch.zeros(16), ["scored"] * 16, 0))
    with pytest.raises(InputError, match="holds prompts that the run's data lacks, p0 first"):
        read(path, {})
    with np.load(path) as file:
        of_another_version = {**file, "value.quantiles_BTHM": np.zeros(3)}
    np.savez(tmp_path / "b.npz", **of_another_version)
    with pytest.raises(InputError, match=r"b.npz cannot be read .*quantiles_BTHM.*: delete it"):
        read(tmp_path / "b.npz", NAMED)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"a.npz cannot be read .*: delete it"):
        read(path, NAMED)


def test_going_back_deletes_later_steps_but_no_bank(tmp_path):
    for name in ("step_000001", "step_000002", ".writing-step_000003", "bank_000000_judge_0000"):
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        (tmp_path / f"rollouts/{name}.npz").write_text("")
    rewind(tmp_path, 1)
    assert {path.stem for path in (tmp_path / "rollouts").iterdir()} == {"step_000001", "bank_000000_judge_0000"}
    assert list(step_files(tmp_path)) == [1]


def test_a_killed_run_stores_the_same_bytes(tmp_path, monkeypatch):
    graded_by_chance(monkeypatch)
    save_model(tmp_path / "model")
    whole = start(tmp_path / "whole", tmp_path / "model", "algo=grpo")

    def killed(self, step):
        saves(self, step)
        if step == 1:
            raise KeyboardInterrupt

    saves = session.Session._save
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "cut", tmp_path / "model", "algo=grpo")
    assert list(step_files(tmp_path / "cut/x")) == [1]
    (tmp_path / "cut/x/rollouts/step_000002.npz").write_text("of the step that was lost")
    cut = start(tmp_path / "cut", tmp_path / "model", "algo=grpo")
    before, after = ([path.read_bytes() for path in step_files(run).values()] for run in (whole, cut))
    assert len(before) == 2 and before == after


def test_stored_files_are_small(tmp_path):
    stored, loop = steps_of("dvpo", WARM)
    one = stored[1]
    write(tmp_path / "whole.npz", one)
    write(tmp_path / "less.npz", trimmed(one, loop.collector.noise, loop.collector.correction, loop.algo))
    assert (tmp_path / "less.npz").stat().st_size < 0.1 * (tmp_path / "whole.npz").stat().st_size
    assert rollouts.read(tmp_path / "less.npz", NAMED).evidence.value.mean_BT.isfinite().all()
