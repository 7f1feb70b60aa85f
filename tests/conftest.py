"""Options of the slow tests, and one torch thread per process: tests run side by side."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--runs", default="runs", help="folder of the runs behind the learning bars; finished ones are used"
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def private_wandb(tmp_path, monkeypatch):
    """Nothing of the user's account or home is read or written."""
    for key in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(key, str(tmp_path / "wandb-home"))
    for key in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(key, raising=False)
