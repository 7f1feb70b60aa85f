"""Plans are kept in the cache: never an old one, whatever has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from analysis import plan
from noisyrl.spec import InputError

DATA = Path(__file__).parent / "data"
SWEEP = DATA / "sweeps/tiny.yaml"


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of the small config folder; the cache is empty."""
    monkeypatch.setenv("NOISYRL_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(DATA / "conf", tmp_path / "conf"))


def composed_again(conf, sweep=SWEEP):
    """(plan, whether it was composed)."""
    expand, asked = plan._expand, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_expand", lambda *given: asked.append(given) or expand(*given))
        return plan.expand(sweep, conf), bool(asked)


def test_the_second_time_it_is_read(conf):
    (first, composed), (second, again) = composed_again(conf), composed_again(conf)
    assert composed and not again and first == second and len(first) == 8
    assert all(type(planned.config["seed"]) is int for planned in second)


def test_changed_configs_and_sweeps_are_composed_anew(conf, tmp_path):
    before, _ = composed_again(conf)
    train = conf / "train.yaml"
    train.write_text(train.read_text() + "unheard_of: 1.5e-3\n")
    after, composed = composed_again(conf)
    assert composed and after[0].config["unheard_of"] == 0.0015 and after[0].cell_id != before[0].cell_id
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.read_text().replace("ppo", "grpo", 1))
    assert composed_again(conf, sweep)[1]
    train.write_text(train.read_text().replace("unheard_of: 1.5e-3\n", ""))
    assert composed_again(conf) == (before, False)


def test_what_reads_the_environment_is_never_kept(conf, monkeypatch):
    train = conf / "train.yaml"
    train.write_text(train.read_text() + "who: ${oc.env:WHO}\n")
    for name in ("a", "b"):
        monkeypatch.setenv("WHO", name)
        found, composed = composed_again(conf)
        assert composed and found[0].config["who"] == name


def test_a_damaged_plan_is_composed_anew(conf, tmp_path, capsys):
    before, _ = composed_again(conf)
    (file,) = tmp_path.glob("cache/plan-tiny-*/plan.json.gz")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert composed_again(conf) == (before, True) and "was changed" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_refused(conf, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NOISYRL_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set NOISYRL_CACHE"):
        plan.expand(SWEEP, conf)
