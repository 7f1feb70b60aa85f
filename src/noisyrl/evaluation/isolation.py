"""Evaluation leaves no trace: random state, the model's mode and logging are as they were."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

# lm-eval reports every step of its set-up at INFO and WARNING; what matters of it is in our own records.
_CHATTY = ("lm_eval", "lm-eval", "datasets", "evaluate")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every generator, every module's mode and every logger is restored.

    lm-eval and the libraries below it draw from the global generators even when told not to seed them, so a run
    that evaluates would otherwise train differently from one that does not.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # A CUDA context is not created just to save its generators.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    modes = [(module, module.training) for module in model.modules()]
    levels = [(name, logging.getLogger(name).level) for name in _CHATTY]
    try:
        model.eval()
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for module, training in modes:
            module.training = training
        for name, level in levels:
            logging.getLogger(name).setLevel(level)
