"""The shorter way through a known transformer against the transformer's own forward pass."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from noisyrl import policy as policy_module
from noisyrl import trunk
from noisyrl.critics.scalar import ScalarCritic
from noisyrl.policy import Agent, Critic, Policy, layout
from tests.frame import VOCABULARY, batch_for, built, gradients, loop_for, made_up_rollout

SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.3, pad_token_id=3,
)  # fmt: skip
FAMILIES = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "qwen3, tied": (Qwen3ForCausalLM, lambda **shape: Qwen3Config(**shape, tie_word_embeddings=True)),
    "llama": (LlamaForCausalLM, LlamaConfig),
}


def made(family="qwen3", dtype=torch.float32, **changed):
    """A random model whose norms have weights other than 1."""
    model_class, config = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config(**(SHAPE | changed))).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def answered(prompts=3, samples=4, prompt=6, answer=12):
    """[B, S] tokens, the first 6 the same for the rows of a group and the first 2 for all; [B] sizes, one row cut."""
    g = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(1, VOCABULARY, (prompts * samples, prompt + answer), generator=g)
    tokens_BS[:, :prompt] = tokens_BS[::samples, :prompt].repeat_interleave(samples, 0)
    tokens_BS[:, :2] = torch.tensor([3, 7])
    size_B = prompt + torch.randint(1, answer + 1, (len(tokens_BS),), generator=g)
    size_B[1] = 3  # less than the prompt
    return tokens_BS[torch.randperm(len(tokens_BS), generator=g)], size_B


def both_ways(model, tokens_BS, size_B):
    """[(states of the real tokens, gradients of a made-up loss by parameter)], ours and the model's own."""
    real_BS = torch.arange(tokens_BS.shape[1]) < size_B[:, None]
    found = []
    for ours in (True, False):
        if ours:
            state_ND, number_BS = trunk.hidden_states(model.model, tokens_BS, size_B)
            state_ND = state_ND[number_BS[real_BS]]
        else:
            state_ND = model.model(input_ids=tokens_BS, use_cache=False).last_hidden_state[real_BS]
        weight_ND = torch.linspace(-1, 1, state_ND.numel(), dtype=state_ND.dtype).view_as(state_ND).sin()
        (weight_ND * state_ND).sum().backward()
        found.append((state_ND.detach(), {n: p.grad for n, p in model.model.named_parameters()}))
        model.zero_grad(set_to_none=True)
    return found


def error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_those_of_the_model(family, monkeypatch):
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        if dtype == torch.float64:  # the models norm in float32, whatever their weights are
            for norm in (LlamaRMSNorm, Qwen3RMSNorm):
                monkeypatch.setattr(norm, "forward", norm_in_full)
        (state, grads), (own_state, own_grads) = both_ways(made(family, dtype), *answered())
        assert error(state, own_state) < bound
        assert grads.keys() == own_grads.keys()
        assert all(error(grads[name], own_grads[name]) < bound for name in grads)


def norm_in_full(self, x):
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


def test_threads_change_no_bit_of_what_is_compiled():
    """Some tokens more than a block of `trunk_kernels`."""
    g = torch.Generator().manual_seed(0)
    x_ND, mixed_NCE, both_NJ = (torch.randn(300, *shape, generator=g) for shape in ((16,), (8, 8), (48,)))
    weight_TE, turn = torch.rand(6, 8, generator=g), tuple(torch.randn(2, 300, 8, generator=g))
    number_BS = torch.randint(300, (12, 40), generator=g)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        inputs = [x.clone().requires_grad_() for x in (x_ND, mixed_NCE, weight_TE, both_NJ)]
        x, mixed, weight, both = inputs
        rows = trunk._Turned.apply(mixed, weight, turn, 1e-6, (4, 2), number_BS)
        outputs = [trunk._Normed.apply(x, 1e-6), *rows, trunk._Gated.apply(both)]
        sum((y.sin() * y).sum() for y in outputs).backward()
        found.append([*outputs, *(x.grad for x in inputs)])
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_tokens_that_rows_share_are_computed_once():
    tokens_BS, size_B = answered()
    tokens_BS[5], size_B[5] = tokens_BS[4], size_B[4]
    merged, number_BS = trunk._merged(tokens_BS, size_B)
    starts = set()
    for row, number_S in enumerate(number_BS):
        said = tokens_BS[row, : size_B[row]].tolist()
        starts |= {tuple(said[: t + 1]) for t in range(len(said))}
        assert merged.token_N[number_S[: len(said)]].tolist() == said
        assert merged.position_N[number_S[: len(said)]].tolist() == list(range(len(said)))
    assert len(merged.token_N) == len(starts) < int(size_B.sum())
    assert torch.equal(merged.number_RS.flatten()[merged.place_N], torch.arange(len(starts)))
    attended = {tuple(number_S.tolist()) for number_S in merged.number_RS}
    assert attended < {tuple(number_S.tolist()) for number_S in number_BS}, "one row is the start of others"
    assert len(attended) == len(merged.number_RS)


def test_padding_is_never_read():
    model, (tokens_BS, size_B) = made(), answered()
    real_BS = torch.arange(tokens_BS.shape[1]) < size_B[:, None]
    state_ND, number_BS = trunk.hidden_states(model.model, tokens_BS, size_B)
    poisoned_ND, _ = trunk.hidden_states(model.model, torch.where(real_BS, tokens_BS, -(2**60)), size_B)
    assert torch.equal(state_ND, poisoned_ND)
    assert int(number_BS[real_BS].max()) == len(state_ND) - 1


def bias(model):
    model.model.layers[0].mlp.down_proj.bias = nn.Parameter(torch.ones(16))


def hook(model):
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def patch(model):
    model.model.norm.forward = lambda x: x


def other_weights(model):
    weight_norm(model.model.layers[0].mlp.down_proj)


def recompute(model):
    policy = Policy(model)
    Agent(policy, Critic(ScalarCritic(), policy, seed=0)).recompute_activations()


CHANGES = [bias, hook, patch, other_weights, recompute, nn.Module.double, nn.Module.bfloat16, nn.Module.train]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_deviates_keeps_its_own_forward_pass(change):
    model = made()
    assert trunk.trainable(model.model)
    change(model)
    assert not trunk.trainable(model.model)


def test_only_known_options_and_families_are_known():
    assert trunk.trainable(made("llama").model)
    assert not trunk.trainable(made(attention_bias=True).model)
    assert not trunk.trainable(made(hidden_act="gelu").model)
    assert not trunk.trainable(made(use_sliding_window=True, sliding_window=4, max_window_layers=1).model)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert not trunk.trainable(made("llama", rope_parameters=scaled).model)
    assert not trunk.trainable(Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval().model)
    with torch.autocast("cpu", torch.bfloat16):
        assert not trunk.trainable(made().model)


@pytest.mark.parametrize("algo", ["dvpo", "dvpo_paper", "dvpo_light", "robust_bellman/tv", "ppo", "vrpo"])
def test_an_update_by_answers_that_begin_alike(algo, monkeypatch):
    """Values, credit and gradients are those of the model's own forward pass, which sees each token by itself."""
    rollout = made_up_rollout(dtype=torch.float32)
    first_B = (torch.arange(16) // 4 * 4).tolist()  # of each group, whose words the others begin with
    tokens_BL, attention_BL = rollout.tokens_BL.clone(), rollout.attention_BL.clone()
    tokens_BL[:, :8], attention_BL[:, :4] = tokens_BL[first_B, :8], attention_BL[first_B, :4]
    rollout = replace(rollout, tokens_BL=torch.where(attention_BL, tokens_BL, 0), attention_BL=attention_BL)
    found = []
    for known in (trunk.trainable, lambda _: False):
        monkeypatch.setattr(policy_module.trunk, "trainable", known)
        loop = loop_for(built("algo", f"algo={algo}"), dtype=torch.float32)
        states = policy_module.hidden_states(loop.collector.agent.critic.backbone, layout(rollout))
        batch = batch_for(loop, rollout)
        found.append((len(states.hidden_UD), batch.value.mean_BT, *gradients(loop, batch).values()))
    assert found[0][0] < found[1][0] == int(rollout.mask_BT.sum())
    assert all(error(a, b) < 1e-4 for a, b in zip(found[0][1:], found[1][1:], strict=True))


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_scores_and_values_of_a_rollout(backbone, monkeypatch):
    """Policy and critic, with user's turns and rows of one token."""
    policy = Policy(made())
    agent = Agent(policy, Critic(ScalarCritic(backbone=backbone), policy, seed=0))
    rollout = made_up_rollout(dtype=torch.float32)
    found = []
    for known in (trunk.trainable, lambda _: False):
        monkeypatch.setattr(policy_module.trunk, "trainable", known)
        scores, value = agent(rollout)
        (scores.logp_BT.square() + scores.entropy_BT + value.mean_BT.square()).sum().backward()
        found.append((scores.logp_BT, value.mean_BT, [p.grad for p in agent.parameters() if p.grad is not None]))
        agent.zero_grad(set_to_none=True)
    assert_close(found[0][:2], found[1][:2], atol=1e-5, rtol=1e-5)
    assert len(found[0][2]) == len(found[1][2])
    assert all(error(a, b) < 1e-5 for a, b in zip(found[0][2], found[1][2], strict=True))
