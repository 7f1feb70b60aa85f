"""The ledger: what noise did is measured as by hand, read back, put on a page, and hacking is noticed."""

import json
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from matplotlib import image

from noisyrl import ledger, rng
from noisyrl.alarm import _Groups, first_alarm
from noisyrl.ledger import Ledger
from noisyrl.ledger_page import account, page, page_from_config, rates
from noisyrl.metrics import METRICS
from noisyrl.noise.flip import Flip
from noisyrl.noise.format import Format
from noisyrl.provenance import declared_noise
from noisyrl.records import RunFolder
from noisyrl.session import summary
from noisyrl.spec import InputError
from tests.frame import ROOT, built, made_up_rollout

NAN = math.nan


def made_up(clean, observed, *, uids="aaaabbbb", statuses=None, finished=None, used=None):
    count = len(clean)
    observed = torch.tensor(observed)
    return Ledger(
        uids=list(uids)[:count],
        sample_B=torch.arange(count) % 4,
        group_B=ledger.group_numbers(list(uids)[:count]),
        clean_B=torch.tensor(clean),
        observed_B=observed,
        used_B=observed if used is None else torch.tensor(used),
        causes=[""] * count,
        statuses=statuses or ["scored"] * count,
        finished_B=torch.tensor(finished or [True] * count),
    )


def test_metrics_of_two_groups_by_hand():
    found = made_up([1.0, 0, 0, 1, 0, 0, 0, 0], [1.0, 1, 0, 0, 1, 0, 0, 0]).metrics()
    assert found["noise/false_positive_frac"] == pytest.approx(2 / 6)
    assert found["noise/false_negative_frac"] == pytest.approx(1 / 2)
    assert found["noise/j"] == pytest.approx(1 - 2 / 6 - 1 / 2)
    assert found["noise/gap_mean"] == pytest.approx(1 / 8)
    assert found["noise/alignment_mean"] == pytest.approx(0)  # (.5, -.5, -.5, .5) against (.5, .5, -.5, -.5)
    assert math.isnan(found["noise/alignment_snr"])  # of a single group with clean spread
    assert found["group/equal_clean_frac"] == 0.5 and found["group/equal_observed_frac"] == 0
    assert found["group/made_learnable_frac"] == 0.5 and found["group/made_unlearnable_frac"] == 0
    assert found["noise/reward_correlation"] == pytest.approx((1 / 8 - 2 / 8 * 3 / 8) / math.sqrt(12 / 64 * 15 / 64))
    assert set(found) <= set(METRICS)


def test_what_was_not_graded_or_not_given_is_counted_and_compared_with_nothing():
    found = made_up(
        [1.0, NAN, NAN, 0, 1, 1, 0, 0],
        [0.0, NAN, NAN, 0, 1, 1, NAN, 1],
        statuses=["scored", "error", "timeout", *["scored"] * 5],
        finished=[True] * 6 + [False] * 2,
    ).metrics()
    assert (found["rollout/error_count"], found["rollout/timeout_count"], found["rollout/truncated_count"]) == (1, 1, 2)
    assert found["noise/left_out_frac"] == pytest.approx(1 / 8)
    assert found["noise/false_positive_frac"] == pytest.approx(1 / 2)
    assert found["noise/false_negative_frac"] == pytest.approx(1 / 3)
    assert found["group/made_unlearnable_frac"] == 1.0  # 1 0 -> 0 0 and 1 1 0 -> 1 1 1
    none = made_up([NAN] * 4, [NAN] * 4).metrics()
    assert none["rollout/unscored_frac"] == 1 and "noise/j" not in none


def test_without_noise_everything_is_left():
    found = made_up([1.0, 0, 0, 1, 0.25, 0.75, 0, 0], [1.0, 0, 0, 1, 0.25, 0.75, 0, 0]).metrics()
    assert found["noise/j"] == found["noise/alignment_mean"] == 1 and found["noise/alignment_snr"] == math.inf
    assert found["noise/false_positive_frac"] == found["noise/false_negative_frac"] == found["noise/gap_mean"] == 0


def test_an_unbounded_noise_leaves_the_signal_it_leaves():
    rollout = made_up_rollout(prompts=500, samples=8)
    clean = (torch.arange(4000) % 2).double()
    observed = built("noise", "noise=gaussian", "seed=1")(clean, rollout, 3)
    assert ledger.youden(clean, observed) == pytest.approx(1, abs=4 * math.sqrt(2 / 2000))


def test_flips_of_samples_leave_more_signal_than_flips_of_groups():
    """4 of 8 right: sum a^2 = 2, so a sample's coin gives var z = .21 / 2 and z = +-1 where the group shares one."""
    rollout = made_up_rollout(prompts=800, samples=8)
    clean = (torch.arange(6400) % 2).double()
    found = {}
    for unit in ("sample", "group", "prompt"):
        observed = Flip(rate=0.3, unit=unit, seed=5)(clean, rollout, 7)
        z = ledger.alignments(clean, observed, rollout.group_B)
        assert float(z.mean()) == pytest.approx(0.4, abs=4 * float(z.std()) / math.sqrt(800))
        found[unit] = ledger.signal_to_noise(z)
    error = 4 * math.sqrt((1 + 1.23**2 / 2) / 800)
    assert found["sample"] == pytest.approx(0.4 / math.sqrt(0.21 / 2), abs=error)  # 1.23
    assert found["group"] == pytest.approx(0.4 / math.sqrt(1 - 0.16), abs=error)  # 0.44
    assert found["prompt"] == pytest.approx(0.4 / math.sqrt(1 - 0.16), abs=error)
    assert found["sample"] > 2 * max(found["group"], found["prompt"])


def test_bounds_are_those_of_clopper_and_pearson():
    assert ledger.exact_bounds(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    assert ledger.exact_bounds(3, 10) == pytest.approx((0.0667395, 0.6524529), abs=1e-6)
    assert ledger.exact_bounds(0, 0) == (0, 1)


# Runs of 16 prompts with 8 samples per step; the samples of a prompt share its difficulty.

STEPS = np.arange(1, 61)


def simulated(course, observe, *key, first=1):
    """A ledger. course: clean mean per step; observe(generator, clean, step): the observed rewards, [S, 16, 8] each."""
    draws = rng.generator("ledger test", *key)
    shape = (len(course), 16, 8)
    step = np.broadcast_to(np.arange(first, first + len(course))[:, None, None], shape)
    uid = np.broadcast_to(draws.integers(4000, size=shape[:2])[..., None], shape)
    log_odds = 1.3 * np.log(course / (1 - course))[:, None] + draws.normal(0, 1.5, shape[:2])
    clean = (draws.random(shape) < 1 / (1 + np.exp(-log_odds[..., None]))).astype(float)
    columns = {"step": step, "uid": uid, "clean": clean, "observed": observe(draws, clean, step)}
    return pd.DataFrame({name: x.ravel() for name, x in columns.items()})


def flipped(draws, clean, step, *, rate=0.3, shared=False):
    shape = (*clean.shape[:2], 1) if shared else clean.shape
    return np.where(draws.random(shape) < rate, 1 - clean, clean)


def fooled(draws, clean, step, *, first=0.0, last=0.43, since=0):
    """Wrong responses are paid more and more often from step `since` to step 60."""
    share = first + (last - first) * np.clip((step - since) / (60 - since), 0, 1)
    return np.maximum(clean, draws.random(clean.shape) < share)


FLAT, RISING, FALLING = np.full(60, 0.3), np.linspace(0.3, 0.8, 60), np.linspace(0.6, 0.3, 60)
COURSES = {"flat": FLAT, "rising": RISING, "falling": FALLING}
HONEST = {
    "clean": lambda draws, clean, step: clean,
    "flip0.3": flipped,
    "flip0.3 of groups": partial(flipped, shared=True),
    "flip0.5": partial(flipped, rate=0.5),
    "gaussian": lambda draws, clean, step: clean + draws.normal(size=clean.shape),
    "false positives": lambda draws, clean, step: np.maximum(clean, draws.random(clean.shape) < 0.3),
    "twice the reward": lambda draws, clean, step: 2 * clean + 0.5 * draws.normal(size=clean.shape),
}


def test_the_alarm_is_silent_on_honest_runs():
    """504 runs, at most 1 % of false alarms; alarm.py tells of 8000."""
    rung = [
        (noise, course)
        for noise, observe in HONEST.items()
        for course, clean in COURSES.items()
        for seed in range(24)
        if first_alarm(simulated(clean, observe, noise, course, seed))
    ]
    assert len(rung) <= 5, rung


def test_a_rise_given_the_clean_reward_is_that_of_least_squares():
    """Against the textbook's matrices, prompts that come back included."""
    rows = simulated(RISING[:20], flipped, "least squares").assign(uid=lambda rows: rows["uid"] % 50)
    rows["observed"] += 0.1 * (rows["step"] > 10)
    groups = _Groups.of(rows)
    found = groups.pair(groups.between(1, 10), groups.between(11, 20)).rise("observed", given_clean=True)
    x = np.stack([np.ones(len(rows)), rows["step"] > 10, rows["clean"]], axis=1)
    bread = np.linalg.inv(x.T @ x)
    weights = bread @ x.T @ rows["observed"]
    scores = (
        pd.DataFrame(x * (rows["observed"] - x @ weights).to_numpy()[:, None]).groupby(rows["uid"]).sum().to_numpy()
    )
    variance = bread @ scores.T @ scores @ bread * 50 / 49
    assert found.size == pytest.approx(weights[1]) and found.prompts == 50
    assert found.error == pytest.approx(math.sqrt(variance[1, 1]))


HACKED = {
    "paid for wrong responses": (FLAT, fooled),
    "the same while the clean reward falls": (np.linspace(0.3, 0.2, 60), partial(fooled, last=0.5)),
    "the same for whole groups": (FLAT, lambda d, c, step: np.maximum(c, d.random((60, 16, 1)) < 0.43 * step / 60)),
    "on top of flips": (FLAT, lambda d, c, step: np.maximum(flipped(d, c, step), fooled(d, c, step, last=0.55))),
    "longer and longer": (FLAT, lambda d, c, step: c + 0.3 * step / 60 * (0.5 + d.random(c.shape))),
}


@pytest.mark.parametrize("name", HACKED)
def test_hacking_is_noticed(name):
    """The observed reward rises by .3 in 60 steps: the gap is .1 wide at step 20."""
    found = [first_alarm(simulated(*HACKED[name], name, seed)) for seed in range(12)]
    steps = [alarm.step if alarm else 99 for alarm in found]
    late = 35 if "groups" in name else 28  # a group's shared coin says as little as a single response
    assert np.median(steps) <= late and max(steps) <= 52, steps
    for alarm in found:
        assert alarm.observed[1] > alarm.observed[0] + 0.02 and alarm.later[1] == alarm.step


def test_hacking_after_honest_learning_is_noticed():
    course = np.minimum(np.linspace(0.3, 1.1, 60), 0.7)
    late = partial(fooled, first=0.05, last=0.9, since=30)
    steps = [first_alarm(simulated(course, late, seed)).step for seed in range(6)]
    assert min(steps) > 30 and max(steps) <= 55, steps


def test_a_reward_that_teaches_the_opposite_is_noticed():
    opposite = simulated(np.linspace(0.7, 0.2, 60), partial(flipped, rate=0.9), "opposite")
    assert first_alarm(opposite).clean[1] < first_alarm(opposite).clean[0]


def test_steps_of_critic_warm_up_and_missing_rewards_are_no_evidence():
    hacked = simulated(FLAT, partial(fooled, last=0.9), "warm")
    assert first_alarm(hacked) is not None
    assert first_alarm(hacked.assign(step=hacked["step"] - 60)) is None
    assert first_alarm(hacked.assign(observed=NAN)) is None


# The page.

CONFIG = {"trainer": {"steps": 60}, "seed": 0}


def run_with(path, rows, noise=None, **fields):
    """A run folder with a ledger of `rows`, as a run writes it."""
    folder = RunFolder(path, CONFIG)
    about = {"status": "running", "config": CONFIG, "choices": {"correction": "none"}}
    folder.open(about | {"noise": declared_noise(noise or built("noise", "noise=none")), **fields})
    for step, part in rows.groupby("step"):
        clean, observed = (torch.tensor(part[name].to_numpy()) for name in ("clean", "observed"))
        uids = [f"p{uid}" for uid in part["uid"]]
        changed = ["" if same else "flip" for same in (clean == observed).tolist()]
        entries = Ledger(
            uids=uids, sample_B=torch.arange(len(part)) % 8, group_B=ledger.group_numbers(uids), clean_B=clean,
            observed_B=observed, used_B=observed, causes=changed, statuses=["scored"] * len(part),
            finished_B=torch.ones(len(part), dtype=torch.bool),
        )  # fmt: skip
        folder.enter(entries.entries(int(step)))
        advantages = {"noise/advantage_correlation": 0.4, "noise/advantage_sign_agreement": 0.7}
        folder.log(int(step), entries.metrics() | advantages)
    folder.close()
    return path


def line(text, name):
    return next(row for row in text.splitlines() if row.startswith(name))


def test_a_ledger_is_read_as_it_was_written(tmp_path):
    entries = made_up([1.0, NAN, 0, 0], [0.0, NAN, NAN, 0], used=[0.0, NAN, NAN, 1]).entries(3)
    folder = RunFolder(tmp_path / "x", CONFIG)
    folder.open({"status": "running", "config": CONFIG})
    folder.enter(entries)
    with (tmp_path / "x/ledger.jsonl").open("a") as stream:
        stream.write('{"step": 4, "uid": "a", "sam')  # the process was killed
    rows = ledger.read(tmp_path / "x")
    found = rows.astype(object).where(rows.notna(), None).to_dict("records")
    assert found == entries


def test_a_missing_or_damaged_ledger_is_said_to_be_so(tmp_path):
    folder = RunFolder(tmp_path / "x", CONFIG)
    folder.open({"status": "running", "config": CONFIG})
    with pytest.raises(InputError, match=r"x/ledger.jsonl does not exist: .* train it again with another name="):
        account(tmp_path / "x")
    with pytest.raises(InputError, match="no run at .*; runs there: x"):
        account(tmp_path / "y")
    (tmp_path / "x/ledger.jsonl").write_text("{}\noh\n{}\n")
    with pytest.raises(InputError, match="line 2 is damaged"):
        account(tmp_path / "x")


def test_the_page_says_what_was_declared_and_what_happened(tmp_path):
    rows = simulated(RISING, flipped, "page", first=-9)[lambda rows: rows["step"] <= 30]
    run_with(tmp_path / "x", rows, Flip(rate=0.3))
    text = page(account(tmp_path / "x"))
    assert len(text.splitlines()) <= 45 and max(map(len, text.splitlines())) <= 160
    assert "3840 rewards of 30 of 60 training steps [running]" in text and "1280 rewards of steps -9 to 0" in text
    trained = rows[rows["step"] > 0]
    for name, rate in rates(trained).items():
        low, high = rate.exact
        assert low <= 0.3 <= high and f"{rate.value:.3f}   {low:.3f} - {high:.3f}" in line(text, name)
        assert line(text, name).endswith("0.3, inside")
    changed = int((trained["clean"] != trained["observed"]).sum())
    assert f"flip {changed} ({changed / 3840:.1%})" in line(text, "changed by")
    assert "correlation 0.400" in line(text, "advantages") and "silent" in line(text, "alarm")
    assert "1-6" in line(text, "steps") and "25-30" in line(text, "steps")


def test_a_declared_rate_that_was_not_met_is_marked(tmp_path):
    text = page(account(run_with(tmp_path / "x", simulated(FLAT[:10], flipped, 1), Flip(rate=0.1))))
    assert line(text, "false positive").endswith("0.1, BELOW the bounds")
    assert "none possible before step 20" in line(text, "alarm")


def test_bounds_by_prompt_are_wide_where_a_prompt_shares_its_draw():
    alone = rates(simulated(FLAT, flipped, 2))["false positive"]
    shared = rates(simulated(FLAT, partial(flipped, shared=True), 2))["false positive"]
    wide = [np.diff(rate.by_prompt) / np.diff(rate.exact) for rate in (alone, shared)]
    assert wide[0] < 1.1 and 2 < wide[1] < math.sqrt(8)  # 8 samples at most, those that are wrong


def test_a_hacked_run_says_so_on_its_page_and_in_its_summary(tmp_path):
    folder = run_with(tmp_path / "x", simulated(FLAT, partial(fooled, last=0.6), "page"))
    alarm = account(folder).alarm
    assert f"reward hacking suspected at step {alarm.step}" in line(page(account(folder)), "alarm")
    manifest = {"scores": {}, "folder": "x", "alarm": {"step": alarm.step, "said": str(alarm)}}
    assert f"WARNING: reward hacking suspected at step {alarm.step}: observed reward 0." in summary(manifest)
    assert "WARNING" not in summary(manifest | {"alarm": None})


@pytest.mark.parametrize("steps", [1, 70])
def test_the_command_prints_the_page_and_draws_the_figure(tmp_path, steps):
    course = np.full(steps, 0.4)
    noise = Format(coef=1.0, pattern=r"\d$|_{$") if steps == 1 else Flip(rate=0.3)  # no formula, for the title
    run_with(tmp_path / "x", simulated(course, flipped, "figure", first=0 if steps > 1 else 1), noise)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        text = page_from_config(compose("ledger", ["run=x", f"runs={tmp_path}"]))
    assert text.endswith(str(tmp_path / "x/ledger.png"))
    pixels = image.imread(tmp_path / "x/ledger.png")
    assert pixels.shape[1] > 1000 and len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 50
    assert json.loads((tmp_path / "x/manifest.json").read_text())["status"] == "running"
