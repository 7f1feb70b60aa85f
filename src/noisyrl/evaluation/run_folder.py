"""Scoring a finished run from its folder: the last checkpoint, the run's own task, its engine and length limit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from noisyrl.evaluation.harness import Evaluation, scores_in
from noisyrl.loggers.base import Logger
from noisyrl.models.base import LanguageModel
from noisyrl.spec import InputError
from noisyrl.tasks.decontaminate import refuse_unchecked

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyrl.evaluation.sampler_lm import Progress


def score_run(
    run_dir: Path, evaluation: Evaluation, *, logger: Logger | None = None, progress: Progress | None = None
) -> Mapping[str, float]:
    """Score the last checkpoint of the run in `run_dir`; results land in run_dir/eval/<eval_id>/.

    logger   its tracker gets the scores too, as a run of job type "eval" in the group of the training run
    returns  as `Evaluation.run`. InputError: no such run (says which there are), no checkpoint, nothing held out.
    """
    import hydra
    from omegaconf import OmegaConf

    from noisyrl import checkpoint
    from noisyrl.evaluation.rows import Subject
    from noisyrl.provenance import identity
    from noisyrl.records import read_manifest

    if logger is not None:
        logger.check()
    manifest = read_manifest(run_dir)
    found = checkpoint.saved(run_dir / "checkpoints")
    if not found:
        raise InputError(f"{run_dir}/checkpoints holds no checkpoint: give the run's command again, it will resume")
    if (origin := manifest.get("inputs", {}).get("data")) is not None:
        # What was compared before the run counts, not what was since.
        refuse_unchecked(origin, evaluation.public)
    config = OmegaConf.load(run_dir / "config.yaml")
    checkpoint.verify(found[-1])
    lm = load_folder(found[-1])
    task = hydra.utils.instantiate(config.data, _convert_="all")
    step = int(found[-1].name.removeprefix("step_"))
    folder = evaluation.stored(
        lm,
        task,
        hydra.utils.instantiate(config.rollout, _convert_="all"),
        subject=Subject(**identity(manifest), step=step, checkpoint_hash=checkpoint.weights_hash(lm.model)),
        out_dir=run_dir / "eval",
        progress=progress,
    )
    if folder is None:
        wanted, there = ", ".join(evaluation.splits), ", ".join(task.splits)
        raise InputError(f"eval.splits asks for {wanted}, but the run's data has {there}: nothing is held out")
    scores = scores_in(folder)
    if logger is not None:
        asked = {"eval": asdict(evaluation), "eval_id": folder.name}
        own = {"name": f"{run_dir.name}-eval", "run_id": f"{manifest['run_id']}-{folder.name}", "job_type": "eval"}
        # The same evaluation again has the same eval_id, and with it the same run of the tracker.
        tracker = logger.start(run_dir, manifest | own | {"config": manifest["config"] | asked})
        tracker.log(step, {f"eval/{name}": value for name, value in scores.items()})
        tracker.finish("completed")
    return scores


def load_folder(folder: Path | str, *, device: str | None = None) -> LanguageModel:
    """Model and tokenizer of a plain Hugging Face folder, in the dtype they were saved in, in evaluation mode.

    InputError: no such folder; nothing is ever looked up on the network.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder: pass one with config.json, weights and tokenizer")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return LanguageModel(model.to(device) if device else model, tokenizer, {"folder": str(folder)})


def score_from_config(cfg: DictConfig) -> Mapping[str, float]:
    """What `src/eval.py` does with conf/eval.yaml: `score_run` of runs/NAME. InputError: as there, or a bad config."""
    from noisyrl.launch import build, resolve

    config = resolve(cfg)
    parts = build({key: config[key] for key in ("eval", "logger")})
    return score_run(Path(config["runs"]) / config["run"], parts["eval"], logger=parts["logger"], progress=_show)


def _show(done: int, total: int) -> None:
    print(f"\r{done}/{total} answered", end="\n" if done == total else "", file=sys.stderr, flush=True)
