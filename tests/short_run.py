"""A real run of two steps in a second or two: a random model and short chains, graded by chance: both grades occur."""

from __future__ import annotations

from noisyrl import rng
from noisyrl.launch import build, resolve
from noisyrl.tasks.math import Chains
from noisyrl.types import Grade
from tests.evaluation.stage import random_model
from tests.frame import composed

SHORT = ["data=math", "data.train_items=40", "data.heldout_items=4", "rollout.samples=4", "rollout.max_tokens=6"]
SHORT += ["trainer.prompts=4", "trainer.steps=2", "trainer.store_rollouts_every=1", "trainer.checkpoint_every=1"]
SHORT += ["eval=smoke", "eval.limit=2", "model=pretrained", "name=x"]


def by_chance(self, prompt, turns):
    """A clean grade that hangs on the words alone."""
    return Grade(float(rng.uniform("grade", turns[-1]) < 0.5))


def graded_by_chance(monkeypatch):
    monkeypatch.setattr(Chains, "grade", by_chance)


def save_model(folder):
    lm = random_model()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def start(runs, model, *overrides):
    """Trains, in this process; returns the run's folder."""
    words = [*SHORT, f"runs={runs}", f"model.path={model}", *overrides]
    config = resolve(composed(*words))
    groups = ("algo", "correction", "data", "eval", "logger", "model", "noise", "rollout", "trainer")
    build(config).run(config, {group: "made-up" for group in groups})
    return runs / "x"
