"""What this CPU can do: rates for models too large to be timed, and what a process holds before it has a model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from noisyrl.planning.rates import Assumptions, Device
from noisyrl.planning.shape import Shape
from noisyrl.processor import each_row

_SIDE = 1024  # of the matrices that are multiplied
_BUFFER = 2**26  # bytes that are copied


def measured_device() -> Device:
    """Rates of matrix products and memory with the threads torch has now; takes a second or two."""
    tflops = {dtype: _products(dtype) for dtype in (torch.float32, torch.bfloat16)}
    source = torch.zeros(_BUFFER // 4)
    target = torch.empty_like(source)
    copied = 2 * _BUFFER / _fastest(lambda: target.copy_(source))
    return Device(
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        tflops_16=tflops[torch.bfloat16],
        tflops_32=tflops[torch.float32],
        bandwidth_gbs=copied / 1e9,
        link_gbs=copied / 1e9,
    )


def measured_assumptions() -> Assumptions:
    """Rates that were measured are reached; a layer call takes what it takes here for a single token."""
    layers = 4
    small = Shape(
        hidden_size=32,
        num_hidden_layers=layers,
        intermediate_size=32,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model, token = small.untrained(), torch.zeros(1, 1, dtype=torch.long)
        seconds = _fastest(lambda: model(input_ids=token, use_cache=False))
    return Assumptions(
        matrix_frac=1, bandwidth_frac=1, layer_call_us=seconds / layers * 1e6, context_gb=0, allocator_frac=0
    )


def _products(dtype: torch.dtype) -> float:
    """TFLOP/s."""
    left, right = (torch.zeros(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
    return 2 * _SIDE**3 / _fastest(lambda: left @ right) / 1e12


def _fastest(act: Callable[[], object], times: int = 5) -> float:
    """Wall seconds of the fastest of some repetitions, the first left out."""
    found = []
    for _ in range(times + 1):
        before = time.perf_counter()
        act()
        found.append(time.perf_counter() - before)
    return min(found[1:])


def import_all() -> None:
    """Imports what a run does, so that this process holds what a run holds before it has a model."""
    # What a run meets on its way: evaluation, checkpoints, the model's code, the backward pass.
    import lm_eval.tasks  # noqa: F401
    import torch.distributed.checkpoint.state_dict  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    import noisyrl.evaluation.sampler_lm
    import noisyrl.evaluation.store  # noqa: F401
    from noisyrl import trunk_kernels

    weight = torch.zeros(64, 64, requires_grad=True)
    (weight @ weight).sum().backward()
    # The first kernel brings a compiler's library with it.
    each_row(trunk_kernels.normed, 64, weight, 1.0, torch.zeros(64, 64), torch.ones(64))
