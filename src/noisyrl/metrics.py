"""Every number a run may log, by name, with its unit: a name that is not here is a mistake and stops the run."""

from __future__ import annotations

from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "reward/observed_mean": "mean reward the algorithm sees, after noise",
    "reward/clean_mean": "mean reward as graded, before noise; logged only",
    "noise/changed_frac": "share of rewards that noise changed",
    "noise/left_out_frac": "share of graded responses without an observed or corrected reward; they leave the group",
    "noise/advantage_correlation": "correlation over policy tokens of the advantages with those of clean rewards",
    "noise/advantage_sign_agreement": "share of tokens with a clean advantage whose advantage has its sign",
    "correction/false_positive": "probability of paying a wrong response that the correction works with",
    "correction/false_negative": "probability of not paying a right response that the correction works with",
    "correction/youden": "what is left of the signal, 1 minus both; estimates are kept at or above youden_floor",
    "correction/trusted": "samples with a known clean score that were counted, since the start",
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
    "critic/correlation_clean": "correlation of the value with the clean outcome over policy tokens",
    "critic/bias": "mean value minus mean observed outcome over policy tokens",
    "critic/head_disagreement": "standard deviation between heads, mean over tokens",
    "critic/crossing_frac": "share of neighbouring quantiles in the wrong order",
    "critic/coverage_error": "mean distance of quantile levels to the share of outcomes below the quantiles",
    "critic/pit_error": "total variation between the histogram of the probability integral transform and uniform",
    "critic/lower_spread": "median minus mean of the lowest tenth of the distribution",
    "critic/upper_spread": "mean of the highest tenth of the distribution minus median",
    "critic/qr": "quantile regression loss, heads averaged",
    "critic/risk": "quantile regression loss tilted to the lower tail; 0 where its weight is 0, as all below",
    "critic/cvar": "squared error of the lower tail's mean",
    "critic/gain": "squared error of the upper tail's mean",
    "critic/shift": "how far the running mean of values is below that of targets",
    "critic/shape": "lower variance above the target's plus upper variance below it",
    "critic/curv": "curvature of the tails against the wanted sign",
    "critic/cons": "squared distance between heads",
    "critic/bottleneck_kl_nats": "KL of the critic's latent to the standard normal, mean over tokens",
    "critic/aux_entropy_nats": "entropy the frozen LM head reads in the critic's states, mean over its highest tokens",
    "critic/aux_nll_nats": "surprise of the frozen LM head at what was said, mean over its highest tokens",
    "critic/align_nats": "KL from the starting policy to the frozen LM head at the critic's states, mean over both",
    "critic/threshold_loss": "minus the worst-case value of the next state, by its dual; 0 at rho 0",
    "critic/threshold_mean": "mean threshold of the dual",
    "critic/threshold_above_frac": "share of next values at or below the threshold; 1 - rho per token when it is right",
    "critic/conservative": "soft maximum of token values, less the value of the token said; 0 where its weight is 0",
    "critic/action_sd": "standard deviation of the value between candidate tokens, mean over positions",
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
