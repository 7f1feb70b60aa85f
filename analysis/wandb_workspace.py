"""A W&B dashboard of our metrics: `python -m analysis.wandb_workspace`, and with `--save` into a W&B project.

Needs the extra `wandb` (`pip install -e '.[wandb]'`). Without `--save` it says what the dashboard would hold; saving
takes a login. W&B is a mirror: tables are made of run folders alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from noisyrl.metrics import METRICS
from noisyrl.spec import InputError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

_TASKS = ("math", "science", "dialogue")
SECTIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "Learning": {
        "Reward, clean": ["reward/clean_mean"],
        "Reward, observed": ["reward/observed_mean"],
        "Entropy": ["policy/entropy_nats"],
        "KL to the sampling and the starting policy": ["policy/kl_old_nats", "policy/kl_reference_nats"],
        "Clipped": ["policy/clip_frac"],
        "Gradient norm": ["policy/grad_norm"],
    },
    "Critic": {
        "Explained variance, observed and clean": ["critic/explained_variance", "critic/explained_variance_clean"],
        "Correlation with the clean outcome": ["critic/correlation_clean"],
        "Bias": ["critic/bias"],
        "Value": ["critic/value_mean"],
        "Gradient norm": ["critic/grad_norm"],
    },
    "DVPO tails": {
        "Spread of the tails": ["critic/lower_spread", "critic/upper_spread"],
        "Calibration": ["critic/coverage_error", "critic/pit_error"],
        "Crossing": ["critic/crossing_frac"],
        "Disagreement of heads": ["critic/head_disagreement"],
        "Loss terms": [f"critic/{term}" for term in ("qr", "risk", "cvar", "gain", "shift", "shape", "curv", "cons")],
    },
    "Noise": {
        "Observed minus clean reward": ["noise/gap_mean"],
        "Error rates": ["noise/false_positive_frac", "noise/false_negative_frac"],
        "Signal left": ["noise/j", "noise/reward_correlation"],
        "Advantages against clean ones": ["noise/advantage_correlation", "noise/advantage_sign_agreement"],
        "Groups of equal rewards": ["group/equal_clean_frac", "group/equal_observed_frac"],
        "Groups that noise made learnable": ["group/made_learnable_frac", "group/made_unlearnable_frac"],
    },
    "Rollouts": {
        "Length": ["rollout/length_tokens"],
        "Turns": ["rollout/turns"],
        "Ended by themselves": ["rollout/finished_frac"],
        "Could not be graded": ["rollout/unscored_frac"],
        "Seconds of a step": ["time/rollout_s", "time/annotate_s", "time/update_s"],
    },
    "Eval": {task: [f"eval/testbed_{task}/acc", f"eval/testbed_{task}_ood/acc"] for task in _TASKS},
}
"""Section -> panel -> metrics."""


def build(entity: str, project: str, *, tier: str = "testbed", group_by: str = "choices.algo") -> Workspace:
    """The dashboard as an object: a line per value of the config key `group_by`, bands of one standard error.

    Runs of one tier are shown. Nothing is sent anywhere. InputError: the extra is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise InputError(f"wandb-workspaces is not installed ({error}): pip install -e '.[wandb]'") from error
    sections = [
        ws.Section(
            name=section,
            is_open=section == "Learning",
            panels=[
                wr.LinePlot(
                    title=title,
                    x="global_step",
                    y=list(metrics),
                    groupby=wr.Config(group_by),
                    groupby_aggfunc="mean",
                    groupby_rangefunc="stderr",
                )
                for title, metrics in panels.items()
            ],
        )
        for section, panels in SECTIONS.items()
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="noisyrl",
        sections=sections,
        # Not the runs of src/eval.py and of tables: their last scores would count twice.
        runset_settings=ws.RunsetSettings(filters=f"Config('tier') = '{tier}' and Metric('JobType') = 'train'"),
    )


def describe() -> str:
    """What the dashboard holds, a line per panel, with the meaning of single metrics."""
    lines = []
    for section, panels in SECTIONS.items():
        lines.append(section)
        for title, metrics in panels.items():
            meaning = METRICS.get(metrics[0], "accuracy on held-out questions, in domain and out of distribution")
            lines.append(f"  {title}: {meaning if len(metrics) == 1 or title in _TASKS else ', '.join(metrics)}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.wandb_workspace", description=__doc__.splitlines()[0])
    parser.add_argument("--entity", default="", help="W&B team or user; the account's default if not given")
    parser.add_argument("--project", default="noisyrl")
    parser.add_argument("--tier", default="testbed", help="runs of this tier are shown")
    parser.add_argument("--group-by", default="choices.algo", help="config key whose values become lines")
    parser.add_argument("--save", action="store_true", help="write it to the project; needs a login")
    options = parser.parse_args(words)
    workspace = build(options.entity, options.project, tier=options.tier, group_by=options.group_by)
    if not options.save:
        print(f"{describe()}\n\nnot saved: give --save, after `wandb login`")
        return
    import wandb

    if not wandb.api.api_key:
        raise InputError("no W&B login on this machine: `wandb login`, or set WANDB_API_KEY; nothing was saved")
    workspace.entity = options.entity or str(wandb.Api().default_entity)
    print(f"saved: {workspace.save().url}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
