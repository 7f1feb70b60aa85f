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
