"""Every number a run may log, by name, with its unit: a name that is not here is a mistake and stops the run."""

from __future__ import annotations

from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "reward/observed_mean": "mean reward the algorithm sees, after noise",
    "reward/clean_mean": "mean reward as graded, before noise; logged only",
    "noise/changed_frac": "share of rewards that noise changed",
    "group/equal_observed_frac": "share of prompts whose samples all got the same observed reward",
    "group/equal_clean_frac": "share of prompts whose samples all got the same clean reward",
    "rollout/length_tokens": "mean policy tokens per response",
    "rollout/turns": "mean policy turns per response",
    "rollout/finished_frac": "share of responses that ended by themselves",
    "rollout/unscored_frac": "share of responses that could not be graded; they leave the group and the loss",
    "policy/surrogate": "clipped surrogate loss",
    "policy/entropy_nats": "entropy per token",
    "policy/clip_frac": "share of token weight whose ratio is outside the clip range",
    "policy/kl_old_nats": "KL estimate k3 to the policy that sampled",
    "policy/kl_reference_nats": "KL estimate k3 to the starting policy",
    "policy/logp_gap_max": "largest difference between sampler's and trainer's log-probability before the update, nats",
    "policy/grad_norm": "gradient norm before clipping, last minibatch",
    "policy/lr": "learning rate of the policy",
    "critic/value_error": "half squared error of the value to its target",
    "critic/value_mean": "mean value before the update",
    "critic/explained_variance": "1 - Var(observed outcome - value) / Var(observed outcome)",
    "critic/explained_variance_clean": "the same against the clean outcome",
    "critic/grad_norm": "gradient norm before clipping, last minibatch",
    "critic/lr": "learning rate of the critic",
    "trainer/skipped_updates": "updates dropped because a gradient was not finite, since the start",
    "trainer/tokens": "policy tokens sampled since the start",
    "time/rollout_s": "seconds of sampling and grading",
    "time/annotate_s": "seconds of values and reference log-probabilities",
    "time/update_s": "seconds of credit and gradient steps",
    "time/step_s": "seconds of the whole step",
}


def check_registered(values: Mapping[str, float]) -> None:
    """KeyError: a metric that METRICS does not describe; evaluation scores (`eval/...`) carry their own names."""
    unknown = [name for name in values if name not in METRICS and not name.startswith("eval/")]
    if unknown:
        raise KeyError(f"metrics {unknown} are not described in metrics.py")
