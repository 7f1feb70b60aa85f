"""CQL's own maths: candidates drawn by key, token values, and the fit with and without the penalty."""

import math
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

import noisyrl.algos.cql as cql_module
import noisyrl.policy as policy_module
from noisyrl.critics.base import Sight
from noisyrl.critics.cql import CQLCritic
from noisyrl.critics.scalar import ScalarCritic
from noisyrl.critics.values import ActionValue
from noisyrl.launch import build
from noisyrl.policy import Policy
from noisyrl.spec import InputError
from noisyrl.types import Credit, Value, concat, rows
from tests.algos.test_ppo import one_row
from tests.frame import VOCABULARY, batch_for, built, composed, gradients, loop_for, made_up_rollout, random_model


def drawing_policy(candidates=16, **options):
    policy = Policy(random_model(), **options)
    policy.candidates = candidates
    return policy


def slow_logp(model, rollout, b, t, temperature=1.0):
    """[V] the policy's log-probabilities of response token t of row b."""
    start = rollout.attention_BL[b].int().argmax()
    end = rollout.tokens_BL.shape[1] - rollout.mask_BT.shape[1] + t
    with torch.no_grad():
        logits = model(input_ids=rollout.tokens_BL[b, start:end][None]).logits[0, -1]
    return torch.log_softmax(logits / temperature, dim=-1)


# The policy's candidates


def test_candidates_do_not_depend_on_the_batch():
    """Alone, in another order, beside longer rows, in chunks: the same tokens."""
    policy, rollout = drawing_policy(), made_up_rollout()
    whole = policy(rollout)
    for index in ([3], [0, 5, 9], list(range(15, -1, -1))):
        part = policy(rows(rollout, torch.tensor(index)))
        assert torch.equal(part.candidates_BTK, whole.candidates_BTK[index])
        assert_close(part.candidate_logp_BTK, whole.candidate_logp_BTK[index], atol=1e-12, rtol=0)
    longest = made_up_rollout(seed=1)
    padded = concat([rows(rollout, torch.tensor([1])), replace(longest, tokens_BL=longest.tokens_BL)])
    size = rollout.mask_BT.shape[1]
    assert torch.equal(policy(padded).candidates_BTK[0, :size], whole.candidates_BTK[1])


def test_candidates_ignore_padding():
    policy, rollout = drawing_policy(), made_up_rollout()
    other = replace(rollout, tokens_BL=torch.where(rollout.attention_BL, rollout.tokens_BL, 39))
    assert torch.equal(policy(other).candidates_BTK, policy(rollout).candidates_BTK)


def test_candidates_in_chunks(monkeypatch):
    whole = drawing_policy()(made_up_rollout())
    monkeypatch.setattr(policy_module, "_CHUNK_ELEMENTS", VOCABULARY * 5)
    chunked = drawing_policy()(made_up_rollout())
    assert torch.equal(chunked.candidates_BTK, whole.candidates_BTK)
    assert_close(chunked.candidate_logp_BTK, whole.candidate_logp_BTK, atol=1e-12, rtol=0)


def test_candidates_are_keyed_by_row_and_position():
    """A policy without preferences: two samples of one text draw apart, and so do two positions, and another step."""
    policy, rollout = drawing_policy(8), made_up_rollout(prompts=1, samples=2, seed=4)
    with torch.no_grad():
        policy.head.weight.zero_()
    names = ("tokens_BL", "attention_BL", "mask_BT", "logp_BT")
    twin = replace(rollout, **{name: getattr(rollout, name)[:1].repeat(2, 1) for name in names})
    first, second = policy(twin).candidates_BTK
    assert twin.mask_BT[0].sum() >= 2 and (first != second).any(dim=-1)[twin.mask_BT[0]].all()
    assert not torch.equal(first[0], first[1])
    keyed = replace(twin, key_B=torch.tensor([5, -(2**62)]))
    assert torch.equal(policy(keyed).candidates_BTK, policy(keyed).candidates_BTK)
    assert not torch.equal(policy(keyed).candidates_BTK[0], first)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_candidates_are_distributed_as_the_policy(temperature):
    """Chi-square over 40 tokens at each of ten positions, pooled; log-probabilities are those of the tokens drawn."""
    count = 4000
    policy, rollout = drawing_policy(count, temperature=temperature), made_up_rollout(prompts=2, samples=2, seed=2)
    scores = policy(rollout)
    statistic, freedom = 0.0, 0
    for b, t in rollout.mask_BT.nonzero()[:10].tolist():
        logp_V = slow_logp(policy.model, rollout, b, t, temperature)
        drawn_K = scores.candidates_BTK[b, t]
        assert_close(scores.candidate_logp_BTK[b, t], logp_V[drawn_K], atol=1e-12, rtol=0)
        expected_V, found_V = count * logp_V.exp(), drawn_K.bincount(minlength=VOCABULARY).double()
        rare_V = expected_V < 5
        pooled = [torch.cat([x[~rare_V], x[rare_V].sum()[None]]) for x in (expected_V, found_V)]
        pooled = [x[pooled[0] > 0] for x in pooled]
        statistic += float(((pooled[1] - pooled[0]).square() / pooled[0]).sum())
        freedom += len(pooled[0]) - 1
    assert freedom > 100
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_no_draw_falls_past_the_vocabulary(monkeypatch):
    """Not even where rounding lifts it onto the total: it picks a token with some probability."""
    policy, rollout = drawing_policy(4), made_up_rollout()
    with torch.no_grad():
        policy.head.weight[-20:] = 0
        policy.head.weight[-20:, 0] = 1e4  # the last tokens: nearly certain or impossible
    for uniform in (1.0, 1 - 2.0**-53, 0.0):
        monkeypatch.setattr(policy_module.rng, "counter_uniforms", lambda keys, _, u=uniform: 0.0 * keys + u)
        scores = policy(rollout)
        assert scores.candidates_BTK.max() < VOCABULARY
        assert (scores.candidate_logp_BTK[rollout.mask_BT] > -50).all()


def test_candidates_take_no_gradient_and_none_are_drawn_unasked():
    scores = drawing_policy()(made_up_rollout())
    assert scores.logp_BT.requires_grad and not scores.candidate_logp_BTK.requires_grad
    assert drawing_policy(0)(made_up_rollout()).candidates_BTK is None
    assert loop_for(built("algo", "algo=ppo")).collector.agent.policy.candidates == 0
    assert loop_for(built("algo", "algo=cql", "algo.critic.candidates=3")).collector.agent.policy.candidates == 3


def test_a_rollout_without_policy_tokens_draws_nothing():
    rollout = made_up_rollout()
    silent = replace(rollout, mask_BT=torch.zeros_like(rollout.mask_BT))
    assert drawing_policy(3)(silent).candidates_BTK.shape == (*rollout.mask_BT.shape, 3)


# The critic


def head_and_sight(candidates=5):
    policy, rollout = drawing_policy(candidates), made_up_rollout()
    head = CQLCritic(rank=3, candidates=candidates, init_sd=0.5).make(16, seed=0, lm=policy.model).double()
    return head, policy.model, Sight(rollout, policy(rollout)), torch.randn(*rollout.mask_BT.shape, 16).double()


def test_values_of_tokens():
    """Q of each token alone, in a loop; the token said is the one in the text at that place."""
    head, model, sight, hidden = head_and_sight()
    value = head(hidden, sight)
    embedding = model.get_input_embeddings().weight.detach()
    embedding = embedding / embedding.square().mean().sqrt()

    def slow_q(b, t, token):
        part = (head.of_state.weight @ hidden[b, t]) @ (head.of_token.weight @ embedding[token])
        return (head.head.weight @ hidden[b, t] + head.head.bias).squeeze() + part

    for b, t in sight.rollout.mask_BT.nonzero().tolist():
        said = sight.rollout.tokens_BL[b, sight.rollout.tokens_BL.shape[1] - sight.rollout.mask_BT.shape[1] + t]
        assert_close(value.taken_BT[b, t], slow_q(b, t, said), atol=1e-6, rtol=0)
        q_K = torch.stack([slow_q(b, t, token) for token in sight.scores.candidates_BTK[b, t]])
        assert_close(value.candidates_BTK[b, t], q_K, atol=1e-6, rtol=0)
        assert_close(value.mean_BT[b, t], q_K.mean(), atol=1e-6, rtol=0)
    assert torch.equal(value.candidate_logp_BTK, sight.scores.candidate_logp_BTK)


def test_without_candidates_it_says_v():
    head, _, sight, hidden = head_and_sight()
    for blind in (None, Sight(sight.rollout), Sight(sight.rollout, replace(sight.scores, candidates_BTK=None))):
        value = head(hidden, blind)
        assert type(value) is Value
        assert_close(value.mean_BT, head.head(hidden).squeeze(-1))


def test_v_starts_as_the_value_of_ppo():
    ours = CQLCritic(init_sd=0.01).make(16, seed=3, lm=random_model()).head
    theirs = ScalarCritic(init_sd=0.01).make(16, seed=3).head
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def test_embeddings_are_a_frozen_copy_that_is_not_saved():
    model = random_model()
    head = CQLCritic().make(16, seed=0, lm=model)
    before = head.embedding_VE.clone()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    assert torch.equal(head.embedding_VE, before) and not head.embedding_VE.requires_grad
    assert "embedding_VE" not in head.state_dict()
    assert not any(p is model.get_input_embeddings().weight for p in head.parameters())
    with pytest.raises(ValueError, match="input embeddings"):
        CQLCritic().make(16, seed=0)


# The losses


@pytest.fixture(scope="module")
def batch():
    return batch_for(loop_for(built("algo", "algo=grpo")), made_up_rollout())


def action_value(mean, taken, candidates, logp):
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (mean, taken, candidates, logp)]
    return ActionValue(
        mean_BT=tensors[0], taken_BT=tensors[1], candidates_BTK=tensors[2], candidate_logp_BTK=tensors[3]
    )


def test_critic_loss_golden(batch):
    """The whole vocabulary of three as candidates: the penalty is 1.407606, and its gradient softmax - onehot."""
    one = one_row(batch, reward=1.0, value=[0.0], logp=[-1])
    old = action_value([[2.0]], [[2.0]], [[[1.0, 2.0, 3.0]]], [[[-math.log(3)] * 3]])
    one = replace(one, value=old)
    credit = Credit(advantage_BT=torch.zeros(1, 1).double(), target=torch.tensor([[1.5]]).double())
    q = old.candidates_BTK.clone().requires_grad_()
    algo = built("algo", "algo=cql", "algo.conservative_coef=0.1", "algo.critic_coef=2")
    loss = algo.critic_loss(replace(old, candidates_BTK=q, taken_BT=q[..., 1]), one, credit)
    assert loss.terms["conservative"].item() == pytest.approx(1.407606, abs=1e-6)
    assert loss.terms["value_error"].item() == pytest.approx(0.125)
    assert loss.total_BT.item() == pytest.approx(2 * (0.125 + 0.1407606), abs=1e-6)
    loss.total_BT.sum().backward()
    expected = 2 * (0.1 * torch.tensor([0.090031, -0.755272, 0.665241]) + torch.tensor([0, 0.5, 0])).double()
    assert_close(q.grad[0, 0], expected, atol=1e-6, rtol=0)


def test_clipping_is_about_the_old_value_of_the_token_said(batch):
    """PPO's golden, in Q: .9, old .5, return 1; the old expectation, .9, plays no part."""
    one = one_row(batch, reward=1.0, value=[0.0], logp=[-1])
    old = action_value([[0.9]], [[0.5]], [[[0.9]]], [[[0.0]]])
    new = action_value([[0.0]], [[0.9]], [[[0.0]]], [[[0.0]]])
    credit = Credit(advantage_BT=torch.zeros(1, 1).double(), target=torch.ones(1, 1).double())
    algo = built("algo", "algo=cql", "algo.value_clip=0.2")
    assert algo.critic_loss(new, replace(one, value=old), credit).terms["value_error"].item() == pytest.approx(0.045)


def test_credit_bootstraps_from_the_expectation_and_ignores_the_token_said(batch):
    """r + gamma * ((1 - lambda) V^c + lambda G): the target of the first token holds no value of the first state."""
    algo = built("algo", "algo=cql", "algo.lam_critic=0.95", "algo.whiten_advantages=false")
    one = one_row(batch, reward=1.0, value=[0.5, 0.6, 0.8], logp=[-1] * 3)
    zeros = torch.zeros(1, 3, 2).double()
    value = ActionValue(
        mean_BT=one.value.mean_BT, taken_BT=zeros[..., 0] + 9, candidates_BTK=zeros + 7, candidate_logp_BTK=zeros
    )
    credit = algo.credit(replace(one, value=value))
    second = 0.05 * 0.8 + 0.95 * 1
    expected = torch.tensor([[0.05 * 0.6 + 0.95 * second, second, 1.0]], dtype=torch.float64)
    assert_close(credit.target, expected)
    assert_close(credit.advantage_BT, torch.tensor([[0.4705, 0.39, 0.2]], dtype=torch.float64))
    moved = replace(value, mean_BT=value.mean_BT + torch.tensor([[5.0, 0, 0]]).double())
    assert_close(algo.credit(replace(one, value=moved)).target, expected)


def test_without_the_penalty_it_is_a_plain_fit_to_the_return(monkeypatch):
    """Weight 0: the penalty is not computed, is logged as 0, and the gradient is that of the squared error."""
    algo = built("algo", "algo=cql", "algo.conservative_coef=0")
    loop = loop_for(algo)
    batch = batch_for(loop, made_up_rollout())
    credit = algo.credit(batch)
    monkeypatch.setattr(cql_module, "conservative_penalty", lambda *a, **k: pytest.fail("computed"))
    _, value = loop.collector.agent(batch.rollout)
    loss = algo.critic_loss(value, batch, credit)
    assert (loss.terms["conservative"] == 0).all()
    error = torch.where(batch.mask_BT, 0.5 * (value.taken_BT - credit.target).square(), 0)
    assert_close(loss.total_BT, error, atol=1e-12, rtol=0)
    weighted = (algo.token_weights(batch.mask_BT) * error).sum()
    names = [name for name, _ in loop.collector.agent.named_parameters() if name.startswith("critic")]
    parameters = [loop.collector.agent.get_parameter(name) for name in names]
    expected = torch.autograd.grad(weighted, parameters, allow_unused=True)
    found = gradients(loop_for(algo), batch)
    for name, gradient in zip(names, expected, strict=True):
        if gradient is not None:
            assert_close(found[name], gradient, atol=1e-12, rtol=0)


def test_with_the_penalty_the_gradient_differs():
    plain, penalised = (built("algo", "algo=cql", f"algo.conservative_coef={coef}") for coef in (0, 0.1))
    batch = batch_for(loop_for(plain), made_up_rollout())
    found, expected = gradients(loop_for(penalised), batch), gradients(loop_for(plain), batch)
    assert all(torch.equal(found[name], expected[name]) for name in found if name.startswith("policy"))
    assert any(not torch.equal(found[name], expected[name]) for name in found if name.startswith("critic.head"))


@pytest.mark.parametrize("poison", [1e9, float("nan"), float("inf")])
def test_token_values_outside_the_mask_are_never_read(poison):
    algo = built("algo", "algo=cql")
    loop = loop_for(algo)
    batch = batch_for(loop, made_up_rollout())
    mask, value = batch.mask_BT, batch.value

    def poisoned(x):
        return torch.where(mask if x.dim() == 2 else mask[..., None], x, poison)

    names = ("mean_BT", "taken_BT", "candidates_BTK", "candidate_logp_BTK")
    dirty_value = replace(value, **{name: poisoned(getattr(value, name)) for name in names})
    dirty = replace(batch, value=dirty_value)
    clean_credit, dirty_credit = algo.credit(batch), algo.credit(dirty)
    assert torch.equal(clean_credit.advantage_BT, dirty_credit.advantage_BT)
    clean, found = algo.critic_loss(value, batch, clean_credit), algo.critic_loss(dirty_value, dirty, dirty_credit)
    assert torch.equal(found.total_BT, clean.total_BT)
    expected = value.diagnostics(batch.reward_B, mask, 0.05)
    assert dirty_value.diagnostics(batch.reward_B, mask, 0.05) == expected
    assert expected["critic/action_sd"] > 0


def test_another_critic_is_refused():
    config = OmegaConf.to_container(composed("algo=cql", "critic@algo.critic=scalar"), resolve=True) | {"name": "x"}
    with pytest.raises(InputError, match="algo.critic"):
        build(config)
