"""Our own decoding step against the modules it replaces, and the models it must leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from noisyrl.rollout.decoder import Decoder, decodable
from noisyrl.rollout.forward import Forward

PROMPTS = [[5, 9, 200, 31, 7, 7], [11], [3, 100, 42]]


def logits(make, model, prompts, *, steps=12):
    """Everything is told: after the prompts, after each of `steps` tokens. They part into 8 slots; two leave midway."""
    draws = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        forward = make(model, steps)
        told = [forward.prefill(prompts, 8)]
        forward.move(torch.arange(len(prompts), 8) % len(prompts), torch.arange(len(prompts), 8), 8)
        for step in range(steps):
            tokens = torch.randint(0, 250, (8,), generator=draws)
            if step == steps // 2:
                forward.move(torch.tensor([6, 7]), torch.tensor([0, 3]), 6)
            told.append(forward.step(tokens[: forward.slots]))
    return told


@pytest.mark.parametrize("arch", ["qwen3", "llama"])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "even"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"rms_norm_eps": 0.1, "tie_word_embeddings": True}],
)
def test_logits_are_those_of_the_modules(lm_of, arch, prompts, options):
    model = lm_of(arch=arch, **options).model
    with torch.no_grad():  # norms of a new model multiply by 1
        for index, weight in enumerate(w for name, w in model.named_parameters() if "norm" in name):
            weight.copy_(torch.linspace(0.5, 1.5, len(weight)).roll(index))
    assert decodable(model)
    own, modules = (logits(make, model, prompts) for make in (Decoder, Forward))
    assert [len(x) for x in own] == [len(prompts)] + [8] * 6 + [6] * 6
    for found, expected in zip(own, modules, strict=True):
        assert expected.std() > 0.5
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_rounding_is_no_worse_than_that_of_the_modules(lm_of):
    """Both against the same model in float64."""
    lm = lm_of()
    own, modules = (torch.cat(logits(make, lm.model, PROMPTS)).double() for make in (Decoder, Forward))
    exact = torch.cat(logits(Forward, lm.model.double(), PROMPTS))
    assert (own - exact).abs().max() < 2 * (modules - exact).abs().max() < 1e-4


def hooked(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)


def patched(model):
    model.model.layers[1].mlp.forward = lambda x: x


def adapted(model):
    class Adapted(nn.Linear):
        pass

    model.model.layers[0].self_attn.q_proj.__class__ = Adapted


def pruned(model):
    nn.utils.parametrize.register_parametrization(model.model.layers[0].mlp.up_proj, "weight", nn.Identity())


@pytest.mark.parametrize("change", [hooked, patched, adapted, pruned, lambda m: m.double(), lambda m: m.bfloat16()])
def test_a_changed_model_keeps_its_own_forward_pass(lm_of, change):
    model = lm_of().model
    assert decodable(model)
    change(model)
    assert not decodable(model)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_options_it_was_not_written_for(lm_of, options):
    assert not decodable(lm_of(**options).model)


def test_another_architecture():
    shape = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    assert not decodable(MistralForCausalLM(MistralConfig(**shape, num_attention_heads=2, num_key_value_heads=1)))
