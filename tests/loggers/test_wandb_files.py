"""W&B sweeps name keys that compose and never search by test scores; the dashboard shows metrics that are logged."""

import itertools

import pytest
import yaml

from analysis import wandb_workspace
from noisyrl.launch import build, resolve
from noisyrl.metrics import METRICS
from noisyrl.spec import InputError
from tests.frame import ROOT, composed, options

SWEEPS = sorted((ROOT / "sweeps/wandb").glob("*.yaml"))


def words(sweep):
    """What an agent may put on the command line: every point of a grid, or the corners of what is searched."""
    choices = []
    for key, spec in sweep["parameters"].items():
        values = spec.get("values", [spec[end] for end in ("value", "min", "max") if end in spec])
        choices.append([f"{key}={value}" for value in values])
    fixed = [word for word in sweep["command"] if not word.startswith("${")]
    return [[*point, *fixed] for point in itertools.product(*choices)]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_point_of_a_sweep_composes_and_builds(file):
    sweep = yaml.safe_load(file.read_text())
    points = words(sweep)
    assert len(points) > 1
    for point in points:
        config = resolve(composed(*point, "name=x"))
        build(config)
        for word in point:
            key, value = word.split("=")
            if key not in ("algo", "noise", "data", "logger"):
                found = config
                for part in key.split("."):
                    found = found[part]
                assert found == yaml.safe_load(value)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_an_agent_can_run_it(file):
    sweep = yaml.safe_load(file.read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"][:4] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    assert sweep["method"] in ("grid", "bayes") and ("metric" in sweep) == (sweep["method"] == "bayes")


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").rglob("*.yaml")), ids=lambda file: file.stem)
def test_no_sweep_searches_by_test_scores(file):
    sweep = yaml.safe_load(file.read_text())
    target = sweep.get("metric", {}).get("name", "reward/clean_mean")
    assert target in METRICS and not target.startswith("eval/")
    assert "eval/" not in str(sweep)


def test_the_dashboard_shows_what_is_logged():
    panels = [metrics for panels in wandb_workspace.SECTIONS.values() for metrics in panels.values()]
    logged = [name for metrics in panels for name in metrics if not name.startswith("eval/")]
    assert set(logged) <= set(METRICS) and len(logged) == len(set(logged))
    scored = {name for metrics in panels for name in metrics if name.startswith("eval/")}
    tasks = {"math", "science", "dialogue"} & set(options("data"))
    assert scored == {f"eval/testbed_{task}{split}/acc" for task in tasks for split in ("", "_ood")}


def test_the_dashboard_is_built_without_a_network(capsys):
    pytest.importorskip("wandb_workspaces")
    built = wandb_workspace.build("team", "noisyrl", tier="smoke")
    assert [section.name for section in built.sections] == list(wandb_workspace.SECTIONS)
    first = built.sections[0].panels[0]
    assert (first.x, list(first.y), first.groupby_rangefunc) == ("global_step", ["reward/clean_mean"], "stderr")
    assert built.runset_settings.filters == "Config('tier') = 'smoke' and Metric('JobType') = 'train'"
    wandb_workspace.main([])
    assert "Learning" in capsys.readouterr().out


def test_saving_takes_a_login(monkeypatch):
    pytest.importorskip("wandb_workspaces")
    import wandb

    monkeypatch.setattr(type(wandb.api), "api_key", property(lambda self: None))
    with pytest.raises(InputError, match="no W&B login"):
        wandb_workspace.main(["--save"])


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[wandb\]'"):
        wandb_workspace.build("team", "noisyrl")
