"""An evaluation disturbs nothing, repeats nothing, and leaves nothing half-written."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch

from noisyrl.evaluation import store
from noisyrl.evaluation.harness import Evaluation
from noisyrl.rollout.fast import FastSampler
from noisyrl.tasks.math import Chains
from tests.evaluation.stage import Scripted, Toy, random_model


def say_yes(prompt, turns):
    return "yes"


def fail(prompt, turns):
    raise RuntimeError("no one should be asked")


def trained(occasion, *, evaluate: bool) -> bytes:
    """Weights after four steps with dropout and draws from every global generator."""
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    lm = random_model(dropout=0.3)
    lm.model.train()
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=0.1)
    for step in range(4):
        if evaluate:
            Evaluation(limit=3).run(
                lm, Chains(train_items=2, heldout_items=3), FastSampler(max_tokens=8), **occasion | {"step": step}
            )
        ids = torch.randint(4, 200, (2, 9)) + random.randrange(9) + np.random.randint(9)
        lm.model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return b"".join(tensor.numpy().tobytes() for tensor in lm.model.state_dict().values())


def test_training_is_the_same_with_and_without(occasion):
    assert trained(occasion, evaluate=True) == trained(occasion, evaluate=False)
    assert len(list(occasion["out_dir"].iterdir())) == 4


def test_modes_and_loggers_are_put_back_even_after_a_failure(lm, occasion):
    modules = list(lm.model.modules())
    for number, module in enumerate(modules):
        module.training = bool(number % 2)
    before = logging.getLogger("lm_eval").level
    try:
        with pytest.raises(RuntimeError, match="no one"):
            Evaluation().run(lm, Toy(), Scripted(script=fail), **occasion)
        assert [module.training for module in modules] == [bool(n % 2) for n in range(len(modules))]
        assert logging.getLogger("lm_eval").level == before
        assert not occasion["out_dir"].exists()
    finally:
        lm.model.eval()


def test_generators_are_put_back_and_dropout_is_off(lm, occasion):
    def states():
        # Position 2 of numpy's state counts the draws; the words before it change every 624 of them.
        return random.getstate(), np.random.get_state()[2], torch.get_rng_state().tolist()

    def draw_from_everything(prompt, turns):
        assert not any(module.training for module in lm.model.modules())
        return f"{random.random()} {np.random.rand()} {torch.rand(1)}"

    before = states()
    lm.model.train()
    try:
        Evaluation().run(lm, Toy(), Scripted(script=draw_from_everything), **occasion)
        assert lm.model.training and states() == before
    finally:
        lm.model.eval()


def test_nothing_is_printed_or_logged(lm, occasion, capfd, caplog):
    with caplog.at_level(logging.INFO):
        Evaluation().run(lm, Toy(), Scripted(script=say_yes), **occasion)
    assert capfd.readouterr() == ("", "") and caplog.records == []


def test_what_is_there_is_not_asked_again(lm, occasion):
    first = Evaluation().run(lm, Toy(), Scripted(script=say_yes), **occasion)
    assert Evaluation().run(lm, Toy(), Scripted(script=fail), **occasion) == first
    (folder,) = occasion["out_dir"].iterdir()
    assert len(folder.name) >= 12 and int(folder.name, 16) >= 0
    # Other weights, step, questions or limits: another evaluation, beside the first.
    for change in ({"checkpoint_hash": "beef"}, {"step": 11}):
        Evaluation().run(lm, Toy(), Scripted(script=say_yes), **occasion | change)
    Evaluation().run(lm, Toy(count=3), Scripted(script=say_yes), **occasion)
    Evaluation(limit=2).run(lm, Toy(), Scripted(script=say_yes), **occasion)
    Evaluation().run(lm, Toy(), Scripted(script=say_yes, max_tokens=9), **occasion)
    assert len(list(occasion["out_dir"].iterdir())) == 6


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(store.pq, "write_table", full)
    with pytest.raises(OSError, match="disk full"):
        store.write(tmp_path / "eval/abc", aggregate=[{"step": 0}], samples=[], meta={})
    assert list((tmp_path / "eval").iterdir()) == []


def test_two_writers_of_one_evaluation_agree(tmp_path):
    for _ in range(2):
        store.write(tmp_path / "abc", aggregate=[{"step": 0}], samples=[], meta={})
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_when_to_evaluate():
    assert [step for step in range(25) if Evaluation(every_steps=10).due(step)] == [0, 10, 20]
    assert [step for step in range(25) if Evaluation(at_start=False).due(step)] == []
