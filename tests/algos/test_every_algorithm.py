"""What must hold for every algorithm with its critic; a new file in conf/algo is tested without a new line here."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from noisyrl.trainer import describe
from noisyrl.types import rows
from tests.frame import batch_for, built, composed, experience_of, gradients, loop_for, made_up_rollout, options


def own_code(name):
    """Whether an option runs other code than the one it is a preset of, and does not only change numbers."""
    parent, _, preset = name.rpartition("/")
    return not preset or not parent or words(name) != words(parent)


def words(name):
    chosen = composed(f"algo={name}").algo
    return {key: value for key, value in [*chosen.items(), *chosen.critic.items()] if isinstance(value, str | bool)}


VARIANTS = [(name, "") for name in options("algo") if own_code(name)]
VARIANTS += [
    (name, "algo.critic.backbone=shared")
    for name, _ in VARIANTS
    if "/" not in name and "backbone" in composed(f"algo={name}").algo.critic
]


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join(filter(None, v)))
def algo(request):
    name, extra = request.param
    return built("algo", f"algo={name}", *filter(None, [extra]))


def weights_of(algo):
    return [f.name for f in dataclasses.fields(algo) if f.name.startswith("w_") and getattr(algo, f.name) > 0]


def poisoned(x, mask, value):
    """x, a tensor or a dataclass of tensors [B, T, ...], with `value` wherever the mask is False."""
    if dataclasses.is_dataclass(x):
        return replace(x, **{f.name: poisoned(getattr(x, f.name), mask, value) for f in dataclasses.fields(x)})
    if x is None or not x.is_floating_point():
        return x
    return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, torch.tensor(value, dtype=x.dtype))


def terms(loop, batch, credit):
    """Every number the update would log."""
    sums = {}
    loop._apply = lambda: {}
    loop._update(batch, credit, torch.arange(len(batch.reward_B)), sums, critic_only=False)
    return loop._reduced(sums, 1)


def outcome(algo, batch):
    """Every number an update would log, and the gradients of a single pass."""
    loop = loop_for(algo)
    return terms(loop, batch, algo.credit(batch)), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in loop.collector.agent.named_parameters()
    }


def close(found, expected, tolerance, name):
    """Equal to `tolerance`, relative to the largest entry where that is above 1: a sum over 200 quantiles is."""
    scale = max(1.0, float(expected.abs().max()))
    assert_close(found, expected, atol=tolerance * scale, rtol=0, msg=lambda message: f"{name}: {message}")


def test_padding_is_inert(algo):
    """Poison wherever the mask is False, tokens of the padding included, changes no advantage, loss or gradient."""
    clean = batch_for(loop_for(algo), made_up_rollout())
    mask, rollout = clean.mask_BT, clean.rollout
    expected, (expected_terms, expected_gradients) = algo.credit(clean), outcome(algo, clean)
    for poison in (1e9, float("nan")):
        dirty_rollout = replace(
            rollout,
            tokens_BL=torch.where(rollout.attention_BL, rollout.tokens_BL, 39),
            logp_BT=poisoned(rollout.logp_BT, mask, poison),
        )
        dirty = replace(
            clean,
            rollout=dirty_rollout,
            logp_BT=poisoned(clean.logp_BT, mask, poison),
            value=poisoned(clean.value, mask, poison),
            reference=poisoned(clean.reference, mask, poison),
        )
        found = algo.credit(dirty)
        assert torch.equal(expected.advantage_BT, found.advantage_BT)
        assert expected.memory == found.memory
        if expected.target.shape[1]:
            assert torch.equal(expected.target[mask], found.target[mask])
        assert describe(experience_of(clean)) == describe(experience_of(dirty))
        found_terms, found_gradients = outcome(algo, dirty)
        assert expected_terms == found_terms
        for name, gradient in expected_gradients.items():
            assert torch.equal(gradient, found_gradients[name]), name


def test_micro_batches_and_row_order_change_no_gradient(algo):
    batch = batch_for(loop_for(algo), made_up_rollout())
    whole = gradients(loop_for(algo, micro_rows=16), batch)
    assert any(gradient.abs().max() > 0 for gradient in whole.values())
    small = gradients(loop_for(algo, micro_rows=3), batch)
    order = torch.randperm(len(batch.reward_B), generator=torch.Generator().manual_seed(3))
    permuted = gradients(loop_for(algo, micro_rows=5), rows(batch, order))
    for name, gradient in whole.items():
        close(small[name], gradient, 1e-12, name)
        close(permuted[name], gradient, 1e-12, name)


def test_the_same_in_single_precision(algo):
    loop = loop_for(algo, dtype=torch.float32)
    batch = batch_for(loop, made_up_rollout(dtype=torch.float32))
    whole = gradients(loop_for(algo, micro_rows=32, dtype=torch.float32), batch)
    small = gradients(loop_for(algo, micro_rows=4, dtype=torch.float32), batch)
    for name, gradient in whole.items():
        close(small[name], gradient, 1e-6, name)


def test_token_weights_are_a_distribution_over_real_tokens(algo):
    mask = made_up_rollout().mask_BT
    weights = algo.token_weights(mask)
    assert (weights[~mask] == 0).all() and (weights[mask] > 0).all()


def test_nothing_clean_or_constant_gets_a_gradient(algo):
    """Equal rewards and an exact critic leave a group method without any gradient, and nobody with a non-finite one."""
    loop = loop_for(algo)
    batch = batch_for(loop, made_up_rollout())
    batch = replace(batch, reward_B=torch.ones_like(batch.reward_B))
    assert all(gradient.isfinite().all() for gradient in gradients(loop, batch).values())


def test_critic_warm_up_moves_the_critic_alone(algo):
    if not any(True for _ in loop_for(algo).collector.agent.critic.parameters()):
        return  # there is no critic: warmup_steps is fixed at 0
    loop = loop_for(algo)
    batch = batch_for(loop, made_up_rollout())
    agent = loop.collector.agent
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    loop._update(batch, algo.credit(batch), torch.arange(len(batch.reward_B)), {}, critic_only=True)
    moved = {name.split(".")[0] for name, p in agent.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"critic"}


def test_a_weight_of_zero_switches_off_its_term_alone(algo):
    """And changes no other number of the first step."""
    batch = batch_for(loop_for(algo), made_up_rollout())
    credit = algo.credit(batch)
    before = terms(loop_for(algo), batch, credit)
    for name in weights_of(algo):
        without = dataclasses.replace(algo, **{name: 0.0})
        after = terms(loop_for(without), batch, without.credit(batch))
        assert after.keys() == before.keys()
        changed = [term for term in before if before[term] != after[term]]
        assert len(changed) <= 1 and all(after[term] == 0 for term in changed), (name, changed)


def test_losses_and_targets_are_never_negative_and_give_the_target_no_gradient(algo):
    loop = loop_for(algo)
    batch = batch_for(loop, made_up_rollout())
    credit = algo.credit(batch)
    assert not credit.advantage_BT.requires_grad and not credit.target.requires_grad
    assert torch.equal(algo.advantages(batch), credit.advantage_BT)
    _, value = loop.collector.agent(batch.rollout, batch.reference)
    loss = algo.critic_loss(value, batch, credit)
    for name, term in loss.terms.items():
        assert not term.requires_grad and term.shape == batch.mask_BT.shape, name
