"""The configs are alive: every file composes and builds, every key is read, what is wrong is refused."""

import ast
import dataclasses
import inspect
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from analysis.plan import expand
from noisyrl.launch import build, resolve
from noisyrl.records import config_hash
from noisyrl.spec import InputError
from tests.frame import ROOT, composed, options

BUILT = ("algo", "noise", "correction", "data", "model", "rollout", "trainer", "eval", "logger")
SOURCES = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize(("group", "option"), [(group, name) for group in BUILT for name in options(group)])
def test_every_option_builds(group, option):
    instantiate(composed(f"{group}={option}")[group], _convert_="all")


@pytest.mark.parametrize("option", options("critic"))
def test_every_critic_builds(option):
    instantiate(OmegaConf.load(ROOT / "conf/critic" / f"{option}.yaml"), _convert_="all")


@pytest.mark.parametrize("option", options("experiment"))
def test_every_experiment_builds(option):
    build(OmegaConf.to_container(composed(f"experiment={option}"), resolve=True) | {"name": "x"})


@pytest.mark.parametrize("option", options("launcher"))
def test_every_launcher_composes(option):
    if option == "ray":
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="extra `ray` is not installed")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"launcher={option}"], return_hydra_config=True)
    assert option.split("_")[0] in cfg.hydra.launcher._target_ or "submitit" in cfg.hydra.launcher._target_


@pytest.mark.parametrize("tier", options("tier"))
@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sweep_is_a_multirun_of_known_keys(file, tier):
    text = file.read_text()
    assert yaml.safe_load(text)["hydra"]["mode"] == "MULTIRUN"
    if tier == "full" and "${sweep." not in text:
        pytest.skip("about the embedded testbed alone")
    planned = expand(file, ROOT / "conf", tier)
    assert len({(each.cell_id, each.seed) for each in planned}) == len(planned)
    for each in planned[:: max(1, len(planned) // 4)]:  # the cell is that of any of its seeds
        moved = resolve(composed(f"tier={tier}", *(f"{k}={v}" for k, v in (dict(each.values) | {"seed": 7}).items())))
        assert config_hash(moved)[:12] == each.cell_id
    for config in {each.cell_id: each.config for each in planned}.values():
        build(config | {"name": "x"})


def specs():
    """Every config class that an option of conf/ names."""
    found = set()
    for file in (ROOT / "conf").rglob("*.yaml"):
        found |= set(re.findall(r"^\s*_target_: (noisyrl\S+)", file.read_text(), re.MULTILINE))
    return sorted(found)


@pytest.mark.parametrize("target", specs())
def test_no_field_is_unread(target):
    from hydra.utils import get_class

    for field in dataclasses.fields(get_class(target)):
        assert re.search(rf"\.{field.name}\b", SOURCES), f"{target}.{field.name} is never read"


@pytest.mark.parametrize("target", specs())
def test_every_field_says_what_it_means(target):
    from hydra.utils import get_class

    cls = get_class(target)
    documented = set().union(*(documented_fields(base) for base in cls.__mro__ if dataclasses.is_dataclass(base)))
    if not target.endswith("Experiment"):
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in documented]
        assert not missing, f"{target}: no docstring below {missing}"


def documented_fields(cls):
    """The fields of a class that have a string below them."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    return {
        field.target.id
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def test_a_run_has_few_enough_keys():
    def leaves(tree):
        return sum(leaves(value) if isinstance(value, dict) else 1 for value in tree.values())

    for algo in options("algo"):
        assert leaves(OmegaConf.to_container(composed(f"algo={algo}"), resolve=False)) <= 120


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+algo.clp_low=0.1", "config key algo.clp_low does not exist; did you mean clip_low?"),
        ("+algo.critic.init=1", "config key algo.critic.init does not exist; did you mean init_sd?"),
        ("+foo=1", "config key foo does not exist"),
        ("algo.clip_low=wide", "config key algo.clip_low: Input should be a valid number"),
        ("algo.clip_low=-0.1", "config key algo.clip_low: Input should be greater than or equal to 0"),
        ("algo.lr=nan", "config key algo.lr: Input should be a finite number"),
        ("trainer.steps=0", "config key trainer.steps: Input should be greater than or equal to 1"),
        ("trainer.steps=1.5", "config key trainer.steps: Input should be a valid integer"),
        ("trainer.precision=fp8", "config key trainer.precision: Input should be 'fp32' or 'bf16'"),
        ("algo.dual_clip=0.5", "dual_clip must be above 1 or null"),
        ("~algo.critic", "config key algo.critic is missing"),
        ("algo.critic=null", "config key algo.critic: "),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
    ],
)
def test_wrong_keys_types_and_bounds_are_refused(override, message):
    with pytest.raises(InputError) as error:
        build(OmegaConf.to_container(composed(override), resolve=True) | {"name": "x"})
    assert message in str(error.value)


def test_the_kl_acts_in_one_place_with_an_estimator_that_works_there():
    for overrides in (("algo.kl_in=loss", "algo.kl_coef=0.1"), ("algo.kl_estimator=k3",)):
        with pytest.raises(InputError, match="kl_"):
            build(OmegaConf.to_container(composed(*overrides), resolve=True) | {"name": "x"})
    with pytest.raises(InputError, match="kl_in"):
        build(OmegaConf.to_container(composed("algo=grpo", "algo.kl_in=reward"), resolve=True) | {"name": "x"})


def test_the_tree_in_the_readme_is_true():
    readme = (ROOT / "README.md").read_text()
    for path in re.findall(
        r"^ *([\w./-]+/|[\w-]+\.\w+) {2,}", readme.split("```text")[1].split("```")[0], re.MULTILINE
    ):
        found = [p for p in [ROOT / path, ROOT / "src" / path, ROOT / "src/noisyrl" / path] if p.exists()]
        assert found, f"README names {path}, which is not there"


def test_commands_in_the_documents_name_what_exists():
    for document in (ROOT / "README.md", ROOT / "CHANGELOG.md"):
        for group, option in re.findall(
            r"\b(algo|noise|data|model|rollout|trainer|eval|logger)=([\w.]+)", document.read_text()
        ):
            assert Path(ROOT / "conf" / group / f"{option}.yaml").exists(), f"{document.name}: {group}={option}"


def test_a_folder_called_like_a_key_is_no_config_group(tmp_path):
    """`runs/` lies in the working directory of every user: `runs=elsewhere` must stay the key."""
    (tmp_path / "runs").mkdir()
    words = [sys.executable, str(ROOT / "src/train.py"), "+sweeps=smoke", "runs=elsewhere", "--cfg", "job"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "src"})
    assert "runs: elsewhere" in done.stdout, done.stderr
