"""The loop: sharding, non-finite updates, schedules, and unscored responses."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from noisyrl.experience import Grades, by_length
from noisyrl.provenance import realised_noise
from noisyrl.spec import InputError
from noisyrl.tasks.base import batch as draw
from noisyrl.trainer import Progress, Trainer, describe
from noisyrl.types import Prompt, rows, trimmed
from tests.frame import ROOT, batch_for, built, gradients, loop_for, made_up_rollout

SHARDED = """
import sys, torch
from accelerate import Accelerator
from tests.frame import batch_for, built, gradients, loop_for, made_up_rollout
found = {}
for name in sys.argv[2:]:
    loop = loop_for(built("algo", f"algo={name}"), micro_rows=2)
    batch = batch_for(loop, made_up_rollout(prompts=5, samples=3))  # 15 rows: the two shares differ in size
    found |= {f"{name} {parameter}": gradient for parameter, gradient in gradients(loop, batch).items()}
if Accelerator(cpu=True).is_main_process:
    torch.save(found, sys.argv[1])
"""
ALGOS = (
    "ppo", "grpo", "dr_grpo", "reinforce_pp", "robust_bellman", "robust_bellman/tv", "vrpo", "vrpo/lm_align", "dvpo",
    "scalar_heads", "rfqi", "cql",
)  # fmt: skip


def test_two_processes_find_the_gradients_of_one(tmp_path):
    script, out = tmp_path / "sharded.py", tmp_path / "gradients.pt"
    script.write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run([*command, str(script), str(out), *ALGOS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    sharded = torch.load(out, weights_only=True)
    for algo in ALGOS:
        loop = loop_for(built("algo", f"algo={algo}"), micro_rows=4)
        for name, gradient in gradients(loop, batch_for(loop, made_up_rollout(prompts=5, samples=3))).items():
            found, scale = sharded.pop(f"{algo} {name}"), max(1.0, float(gradient.abs().max()))
            assert (found - gradient).abs().max() <= 1e-12 * scale, f"{algo} {name}"
    assert not sharded


def test_an_update_that_is_not_finite_is_dropped_and_counted():
    algo = built("algo", "algo=ppo")
    loop = loop_for(algo)
    batch = batch_for(loop, made_up_rollout())
    credit = algo.credit(batch)
    credit.advantage_BT[0, 0] = float("nan")
    before = [p.detach().clone() for p in loop.collector.agent.parameters()]
    metrics = loop._update(batch, credit, torch.arange(16), {}, critic_only=False)
    assert loop.progress.skipped_updates == 1 and metrics["policy/grad_norm"] != metrics["policy/grad_norm"]
    assert all(torch.equal(a, b) for a, b in zip(before, loop.collector.agent.parameters(), strict=True))
    loop._update(batch, algo.credit(batch), torch.arange(16), {}, critic_only=False)
    assert loop.progress.skipped_updates == 1
    assert not all(torch.equal(a, b) for a, b in zip(before, loop.collector.agent.parameters(), strict=True))


def test_gradients_are_clipped_for_policy_and_critic_each():
    algo = built("algo", "algo=ppo", "algo.critic_coef=1e6")
    loop = loop_for(algo)
    batch = batch_for(loop, made_up_rollout())
    norms = []
    loop.optimizer.step = lambda: norms.extend(
        torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm().item()
        for group in loop.optimizer.param_groups
    )
    metrics = loop._update(batch, algo.credit(batch), torch.arange(16), {}, critic_only=False)
    assert metrics["critic/grad_norm"] > 100 and norms[1] == pytest.approx(1.0, rel=1e-3)
    assert norms[0] == pytest.approx(min(1.0, metrics["policy/grad_norm"]), rel=1e-3)


def test_learning_rate_courses():
    constant = Trainer(steps=10, lr_warmup_steps=4)
    assert [constant.lr_factor(step) for step in (0, 1, 3, 4, 9)] == pytest.approx([0.2, 0.4, 0.8, 1, 1])
    linear = Trainer(steps=10, lr_decay="linear")
    assert [linear.lr_factor(step) for step in (0, 5, 9)] == pytest.approx([1, 0.5, 0.1])
    cosine = Trainer(steps=10, lr_decay="cosine")
    assert [cosine.lr_factor(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_minibatches_cover_each_row_once_per_epoch():
    loop = loop_for(built("algo", "algo=grpo"), minibatches=3)
    for epoch in (0, 1):
        parts = list(loop._minibatches(16, 7, epoch))
        assert len(parts) == 3 and sorted(torch.cat(parts).tolist()) == list(range(16))
    assert list(loop._minibatches(16, 7, 0))[0].tolist() != list(loop._minibatches(16, 7, 1))[0].tolist()
    assert list(loop._minibatches(16, 7, 0))[0].tolist() == list(loop._minibatches(16, 7, 0))[0].tolist()


def test_responses_that_could_not_be_scored_leave_the_batch():
    loop = loop_for(built("algo", "algo=grpo"))
    rollout = made_up_rollout()
    clean = torch.zeros(16, dtype=torch.float64)
    clean[3], clean[5:8] = float("nan"), 1.0
    experience = loop.collector.annotate(rollout, Grades(clean), 0)
    assert len(experience.ledger.uids) == 16 and len(experience.batch.reward_B) == 15
    assert (3 not in experience.batch.rollout.sample_B[experience.batch.group_B == 0]) and (
        experience.batch.group_B == 0
    ).sum() == 3
    metrics = describe(experience)
    assert metrics["rollout/unscored_frac"] == 1 / 16 and metrics["reward/clean_mean"] == pytest.approx(3 / 15)
    nothing = loop.collector.annotate(rollout, Grades(torch.full((16,), float("nan"), dtype=torch.float64)), 0)
    assert describe(nothing) == {
        "rollout/unscored_frac": 1.0,
        "noise/left_out_frac": 0.0,
        "rollout/error_count": 16.0,
        "rollout/timeout_count": 0.0,
        "rollout/truncated_count": 0.0,
    }


def test_the_data_stream_is_a_function_of_seed_and_step():
    pool = [Prompt((), "", "t", f"u{i}", "d") for i in range(10)]
    names = [[p.uid for p in draw(pool, step, 3, seed=1)] for step in range(6)]
    assert names == [[p.uid for p in draw(pool, step, 3, seed=1)] for step in range(6)]
    first, second = sum(names[:3], []), sum(names[3:], [])
    assert len(set(first)) == 9 and len(set(second)) == 9 and first != second
    assert [p.uid for p in draw(pool, 0, 3, seed=2)] != names[0]
    with pytest.raises(InputError, match="11 asks for more prompts than the 10"):
        draw(pool, 0, 11, seed=1)


def test_rows_are_sorted_by_length():
    rollout = made_up_rollout()
    lengths = rollout.attention_BL.sum(dim=1)[by_length(rollout)].tolist()
    assert lengths == sorted(lengths, reverse=True)


def test_log_probabilities_of_an_untrusted_sampler_are_computed_again():
    loop = loop_for(built("algo", "algo=grpo"))
    rollout = made_up_rollout()
    reward = torch.zeros(16, dtype=torch.float64)
    assert torch.equal(loop.collector.annotate(rollout, Grades(reward), 0).batch.logp_BT, rollout.logp_BT)
    again = replace(loop.collector, trust_sampler=False).annotate(rollout, Grades(reward), 0).batch.logp_BT
    with torch.no_grad():
        expected = loop.collector.agent(rollout)[0].logp_BT
    torch.testing.assert_close(again, expected, atol=1e-12, rtol=0)


def test_what_noise_did_is_counted():
    progress = Progress()
    loop = loop_for(built("algo", "algo=grpo"))
    clean = torch.tensor([1.0] * 10 + [0.0] * 6, dtype=torch.float64)
    noisy = clean.clone()
    noisy[:3], noisy[10:13] = 0.0, 1.0
    experience = loop.collector.annotate(made_up_rollout(), Grades(clean), 0)
    progress.count(replace(experience, ledger=replace(experience.ledger, observed_B=noisy)))
    found = realised_noise(progress)
    assert found["realised_false_negative_rate"] == pytest.approx(0.3)
    assert found["realised_false_positive_rate"] == pytest.approx(0.5)
    assert found["realised_j"] == pytest.approx(0.2) and found["corrupted_frac"] == pytest.approx(6 / 16)
    assert realised_noise(Progress())["realised_j"] is None


def test_micro_batches_are_as_wide_as_their_longest_response():
    algo, rollout = built("algo", "algo=dvpo"), made_up_rollout()
    loop = loop_for(algo, micro_rows=2)
    agent = loop.collector.accelerator.unwrap_model(loop.collector.agent)
    seen = []
    agent.critic.register_forward_pre_hook(lambda critic, given: seen.append(given[0].mask_BT.shape))
    batch = batch_for(loop, rollout)
    loop._update(batch, algo.credit(batch), torch.arange(16), {}, critic_only=False)
    last_B = torch.where(batch.mask_BT, torch.arange(batch.mask_BT.shape[1]), -1).amax(dim=1) + 1
    widths = [(2, int(last_B[index].max())) for index in by_length(batch.rollout).split(2)]
    assert len(set(widths)) > 2
    assert seen == widths + [(16, batch.mask_BT.shape[1])] + widths  # estimates, the frame's own pass, the update


def test_what_lies_behind_the_last_policy_token_is_cut_off():
    rollout = made_up_rollout()
    index = by_length(rollout)[-2:]
    part = rows(rollout, index)
    cut = trimmed(part, part)
    behind = part.mask_BT.shape[1] - cut.mask_BT.shape[1]
    assert behind > 0 and cut.mask_BT[:, -1].any() and not part.mask_BT[:, -behind:].any()
    assert torch.equal(cut.tokens_BL, part.tokens_BL[:, :-behind]) and cut.prompts == part.prompts
    nothing = replace(part, mask_BT=torch.zeros_like(part.mask_BT))
    assert trimmed(nothing, nothing).mask_BT.shape == part.mask_BT.shape
