"""The stage for evaluations, see stage.py."""

from __future__ import annotations

import pytest

from noisyrl.models.base import LanguageModel
from tests.evaluation.stage import random_model


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    return random_model()


@pytest.fixture
def occasion(tmp_path):
    """What every evaluation is told of the run it belongs to."""
    identity = {"run_id": "abc-s0-a1", "cell_id": "abc", "seed": 0, "algo": "ppo", "noise": "flip"}
    identity |= {"model": "tiny", "train_domain": "toy"}
    return {"run_info": identity, "step": 10, "checkpoint_hash": "f00d", "out_dir": tmp_path / "eval"}
