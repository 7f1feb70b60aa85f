"""The plan: which runs a sweep file asks for, and which of them the store holds.

Tables are joined from the plan, never from the store alone: a run that is missing shows as a gap. A planned run is
recognised by its cell_id, the hash of its composed config without the seed. Two runs that differ in anything but the
seed therefore never meet in one cell, and a run made for one table serves all tables that plan it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, cast

import yaml

from analysis.collect import COMPLETED, DIVERGED, Run, dotted
from analysis.cores import each
from noisyrl.models import cache
from noisyrl.records import config_hash, difference, seedless
from noisyrl.spec import InputError


@dataclass(frozen=True)
class Planned:
    """One planned run: the sweep's parameters with their values as on the command line, and its identity."""

    values: Mapping[str, str]
    cell_id: str
    seed: int
    config: Mapping[str, Any] = field(repr=False)
    """The composed config; of another seed, if the sweep has several."""

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items())


@dataclass(frozen=True)
class Match:
    """A planned run, and the folders that hold attempts at it."""

    planned: Planned
    attempts: tuple[Run, ...]

    @property
    def done(self) -> Run | None:
        """The attempt that counts. InputError: there are two."""
        done = [run for run in self.attempts if run.status in (COMPLETED, DIVERGED)]
        if len(done) > 1:
            names = " and ".join(str(run.folder) for run in done)
            raise InputError(f"{names} are both finished runs of {self.planned}. Move one of them out of the way")
        return done[0] if done else None


def expand(sweep: Path, conf: Path, tier: str | None = None) -> list[Planned]:
    """Every combination of `hydra.sweeper.params` of a sweep file, the last parameter changing fastest.

    conf  folder with train.yaml
    tier  option of conf/tier, which may set ${seeds} and more; None = the default
    InputError: no such file, it sweeps nothing, or one of its values does not compose.

    Composing takes a tenth of a second a cell, so plans are kept in the cache, under a hash of all they follow from.
    """
    params = _params(sweep)
    tiers = sorted(path.stem for path in (conf / "tier").glob("*.yaml"))
    if tier and tier not in tiers:
        raise InputError(f"no tier {tier!r}; there are: {', '.join(tiers) or 'none'}")
    key = _follows_from(params, conf, tier)
    if key is None:
        return _read(_expand(sweep, params, conf, tier))
    cache.refuse_unwritable()
    folder = cache.root() / f"plan-{sweep.stem}-{key[:20]}"
    cache.entry(folder, lambda made: _write(made / _PLAN, _expand(sweep, params, conf, tier)))
    return _read(json.loads(gzip.decompress((folder / _PLAN).read_bytes())))


_PLAN = "plan.json.gz"


def _params(sweep: Path) -> Mapping[str, Any]:
    if not sweep.exists():
        known = ", ".join(sorted(path.stem for path in sweep.parent.glob("*.yaml")))
        raise InputError(
            f"no sweep file {sweep}, there are: {known or 'none'}. A table's spec names its own as `sweep`"
        )
    content = yaml.safe_load(sweep.read_text()) or {}
    params = content.get("hydra", {}).get("sweeper", {}).get("params")
    if not params or set(content) - {"hydra"}:
        raise InputError(f"{sweep}: put everything it sets under hydra.sweeper.params, and nothing elsewhere")
    return params


def _follows_from(params: Mapping[str, Any], conf: Path, tier: str | None) -> str | None:
    """A hash of all that decides a plan; None = the configs also read what is no file, such as the environment."""
    files = sorted(path for path in conf.rglob("*") if path.is_file())
    contents = {str(path.relative_to(conf)): path.read_bytes() for path in files}
    if any(sign in content for content in contents.values() for sign in (b"${oc.env", b"${now")):
        return None
    launch = find_spec("noisyrl.launch")  # found, not imported
    assert launch and launch.origin
    code = [Path(source).read_bytes() for source in (__file__, launch.origin)]
    parts = [json.dumps([list(params.items()), tier, version("hydra-core"), version("omegaconf")]).encode(), *code]
    parts += [part for name, content in contents.items() for part in (name.encode(), content)]
    return hashlib.sha256("".join(hashlib.sha256(part).hexdigest() for part in parts).encode()).hexdigest()


def _write(file: Path, plan: Mapping[str, Any]) -> None:
    text = json.dumps(plan)
    assert json.loads(text) == plan
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def _read(plan: Mapping[str, Any]) -> list[Planned]:
    configs = plan["configs"]
    ids = [config_hash(config)[:12] for config in configs]
    return [
        Planned(values, ids[cell], int(values.get("seed", configs[cell]["seed"])), configs[cell])
        for values, cell in plan["planned"]
    ]


def _expand(sweep: Path, params: Mapping[str, Any], conf: Path, tier: str | None) -> dict[str, Any]:
    """{"configs": one of each cell, "planned": [values, place of their config] of every combination}."""
    from hydra import compose, initialize_config_dir  # here: plans that are kept do without
    from hydra.errors import HydraException

    from noisyrl.launch import resolve

    chosen = [f"tier={tier}"] if tier else []

    def composed(values: Mapping[str, str]) -> dict[str, Any]:
        try:
            return resolve(compose("train", [*chosen, *(f"{key}={value}" for key, value in values.items())]))
        except HydraException as error:
            raise InputError(f"{sweep}: {str(error).splitlines()[0]}") from None

    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        resolved = _resolved(params, chosen)
        values = [_values(key, value) for key, value in resolved.items()]
        combinations = [dict(zip(resolved, combination, strict=True)) for combination in product(*values)]
        cells: dict[frozenset, dict[str, str]] = {}  # the configs of one cell differ in the seed only
        for combination in combinations:
            cells.setdefault(_seedless(combination), combination)
        configs = list(each(composed, list(cells.values())))
    places = {cell: place for place, cell in enumerate(cells)}
    return {"configs": configs, "planned": [[values, places[_seedless(values)]] for values in combinations]}


def _seedless(values: Mapping[str, str]) -> frozenset:
    return frozenset(item for item in values.items() if item[0] != "seed")


def _resolved(params: Mapping[str, Any], chosen: Sequence[str]) -> dict[str, Any]:
    """The parameters with interpolations such as ${seeds} taken from the config of the chosen tier."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        root = compose("train", list(chosen))
    except HydraException as error:
        raise InputError(str(error).splitlines()[0]) from None
    OmegaConf.set_struct(root, False)
    root["sweeper_params"] = dict(params)
    return cast(dict[str, Any], OmegaConf.to_container(root["sweeper_params"], resolve=True))


def question_limit(matches: Sequence[Match]) -> int | None:
    """The evaluation's `limit` in the planned configs; None = all questions."""
    return dotted(matches[0].planned.config, "eval.limit") if matches else None


def join(plan: Iterable[Planned], runs: Sequence[Run]) -> list[Match]:
    """Every planned run with its attempts, in the order of the plan."""
    attempts: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        attempts.setdefault((run.cell_id, run.seed), []).append(run)
    return [Match(planned, tuple(attempts.get((planned.cell_id, planned.seed), ()))) for planned in plan]


def near_misses(matches: Iterable[Match], runs: Sequence[Run]) -> dict[str, list[str]]:
    """{config difference: names of the runs that have it}, for runs with the options and seed of a missing run.

    Such a run was made with another setting, or before the config files were changed.
    """
    found: dict[str, list[str]] = {}
    for match in matches:
        for run in runs if not match.attempts else ():
            choices = run.manifest["choices"]
            wanted = {key: value for key, value in match.planned.values.items() if key in choices}
            if run.seed == match.planned.seed and wanted and wanted.items() <= choices.items():
                change = difference(seedless(run.manifest["config"]), seedless(match.planned.config))
                found.setdefault(change, []).append(run.folder.name)
    return found


def _values(key: str, value: object) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"{key}={value}")
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(value)]
