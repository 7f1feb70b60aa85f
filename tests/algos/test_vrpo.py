"""VRPO's own maths, its critic, and what is left of it when everything is switched off."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.testing import assert_close

from noisyrl import checkpoint
from noisyrl.algos.ppo import PPO
from noisyrl.algos.vrpo import VRPO, share, top_tokens, uncertainty_weights
from noisyrl.critics.bottleneck import BottleneckCritic, expected_gelu, kl_to_standard_normal, latent_noise
from noisyrl.critics.scalar import ScalarCritic
from noisyrl.critics.values import BottleneckValue
from noisyrl.models.base import LanguageModel
from noisyrl.ops.vocabulary import distribution_kl, token_scores
from noisyrl.policy import Agent, Critic, Policy
from noisyrl.types import Credit, Value, rows
from tests.frame import VOCABULARY, batch_for, built, gradients, loop_for, made_up_rollout, random_model

PRESETS = ("vrpo", "vrpo/lm_align", "vrpo/token_weight")
OFF = dict(bottleneck_coef=0.0, w_entropy=0.0, w_perplexity=0.0)


def doubles(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def agent_for(backbone="own", **critic):
    policy = Policy(random_model())
    return Agent(policy, Critic(BottleneckCritic(backbone=backbone, latent=8, **critic), policy, seed=0)).double()


def moved(agent, size=0.05):
    """The agent with every trained weight away from its start."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in agent.parameters():
            p += size * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return agent


def reference_scores(rollout, seed=1):
    reference = Policy(random_model(seed=seed)).requires_grad_(False)
    reference.keep_hidden = True
    return reference(rollout)


class Logits:
    """An output layer whose hidden states are the logits."""

    def __init__(self, size):
        self.weight = torch.eye(size, dtype=torch.float64)

    def __call__(self, hidden):
        return hidden


# The latent


def test_kl_golden():
    mean, sigma = doubles([1, 0], [0, 0]), doubles([1, 0.5], [1, 1])
    assert_close(kl_to_standard_normal(mean, 2 * sigma.log()), doubles(0.818147, 0), atol=1e-6, rtol=0)


def test_kl_is_zero_for_the_standard_normal_alone():
    g = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(500, 4, generator=g), 2 * torch.randn(500, 4, generator=g)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    ).sum(dim=-1)
    assert_close(kl_to_standard_normal(mean, logvar), expected, atol=1e-3, rtol=1e-5)
    assert (kl_to_standard_normal(mean, logvar) > 0).all()
    tiny = 1e-6 * torch.randn(500, 4, generator=g)
    assert (kl_to_standard_normal(0 * mean, tiny) >= 0).all()  # float32 does not push it below 0
    assert kl_to_standard_normal(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_the_latent_starts_as_the_standard_normal_and_the_value_near_zero():
    """Were the scales PyTorch's own, the KL would start at several nats and outweigh the value error."""
    model = random_model()
    critic = Critic(built("algo", "algo=vrpo").critic, Policy(model), seed=0).double()
    value = critic(made_up_rollout(), None, None)
    mask = made_up_rollout().mask_BT
    assert critic.head.log_variance.weight.abs().max() == 0 and critic.head.log_variance.bias.abs().max() == 0
    assert 0 < value.kl_BT[mask].mean() < 0.1
    assert value.mean_BT[mask].abs().max() < 0.05 and value.sampled_BT[mask].abs().max() < 0.5


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (BottleneckCritic(lm_head="none").make(16, seed=seed) for seed in (0, 0, 1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.mean.weight, other.mean.weight)


def test_noise_is_standard_normal_and_independent():
    mask = torch.ones(40, 50, dtype=torch.bool)
    rollout = replace(
        made_up_rollout(prompts=10, samples=4),
        tokens_BL=torch.ones(40, 51, dtype=torch.int64), attention_BL=torch.ones(40, 51, dtype=torch.bool),
        mask_BT=mask, logp_BT=torch.zeros(40, 50), key_B=torch.arange(40),
    )  # fmt: skip
    noise = latent_noise(rollout, 16)
    count = noise.numel()
    assert noise.shape == (40 * 50, 16) and noise.isfinite().all() and len(noise.unique()) == count
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs(noise.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / count) ** 0.5
    assert abs((noise < -1.959964).double().mean() - 0.025) < 4 * (0.025 / count) ** 0.5
    box = noise.view(40, 50, 16)
    for left, right in ((box[1:], box[:-1]), (box[:, 1:], box[:, :-1]), (box[..., 1:], box[..., :-1])):
        assert abs((left * right).mean()) < 4 / left.numel() ** 0.5  # neighbours are uncorrelated along every axis
    again = latent_noise(replace(rollout, key_B=torch.arange(40) + 1000), 16)  # another step has other keys
    assert abs((noise * again).mean()) < 4 / count**0.5


@pytest.mark.parametrize("keyed", [True, False])
def test_noise_does_not_depend_on_the_batch(keyed):
    rollout, pad = made_up_rollout(), nn.functional.pad
    if keyed:
        rollout = replace(rollout, key_B=torch.arange(16) - 8)
    whole = torch.zeros(16, 9, 4, dtype=torch.float64)
    whole[rollout.mask_BT] = latent_noise(rollout, 4)
    for index in (torch.tensor([3]), torch.tensor([5, 0, 9]), torch.arange(15, -1, -1)):
        part = rows(rollout, index)
        assert torch.equal(latent_noise(part, 4), whole[index][part.mask_BT])
    wider = replace(
        rollout, tokens_BL=pad(rollout.tokens_BL, (2, 3)), attention_BL=pad(rollout.attention_BL, (2, 3)),
        mask_BT=pad(rollout.mask_BT, (0, 3)), logp_BT=pad(rollout.logp_BT, (0, 3)),
    )  # fmt: skip
    assert torch.equal(latent_noise(wider, 4), latent_noise(rollout, 4))
    agent = moved(agent_for())
    assert_close(agent.critic(wider, None, None).sampled_BT[:, :9], agent.critic(rollout, None, None).sampled_BT)


@pytest.mark.parametrize("noiseless", ["expectation", "latent_mean"])
def test_only_the_sampled_value_is_noisy(noiseless):
    rollout = made_up_rollout()
    mask = rollout.mask_BT
    agent = moved(agent_for(lm_head="none", noiseless=noiseless))
    value = agent.critic(rollout, None, None)
    assert (value.sampled_BT[mask] != value.mean_BT[mask]).all()
    rekeyed = agent.critic(replace(rollout, key_B=torch.arange(16)), None, None)
    assert torch.equal(rekeyed.mean_BT, value.mean_BT) and (rekeyed.sampled_BT[mask] != value.sampled_BT[mask]).all()
    blind = agent.critic.head(torch.randn(2, 3, 16).double())
    assert torch.equal(blind.sampled_BT, blind.mean_BT) and (blind.mean_BT != 0).all()


def test_without_noise_all_values_are_that_of_the_latents_mean():
    rollout = made_up_rollout()
    still = moved(agent_for(lm_head="none", deterministic=True)).critic(rollout, None, None)
    plain = moved(agent_for(lm_head="none", noiseless="latent_mean")).critic(rollout, None, None)
    exact = moved(agent_for(lm_head="none")).critic(rollout, None, None)
    assert torch.equal(still.sampled_BT, still.mean_BT) and torch.equal(still.mean_BT, plain.mean_BT)
    assert (exact.mean_BT != plain.mean_BT)[rollout.mask_BT].all()


def test_the_mean_of_gelu():
    mean, variance = torch.meshgrid(torch.linspace(-4, 4, 9), torch.tensor([0.0, 0.01, 1, 25]), indexing="ij")
    mean, variance = mean.double(), variance.double()
    grid = torch.linspace(-9, 9, 20001, dtype=torch.float64)[:, None, None]
    density = torch.exp(-0.5 * grid.square()) / (2 * torch.pi) ** 0.5
    expected = (nn.functional.gelu(mean + variance.sqrt() * grid) * density).sum(dim=0) * (18 / 20000)
    assert_close(expected_gelu(mean, variance), expected, atol=1e-9, rtol=0)
    assert_close(expected_gelu(mean, 0 * variance), nn.functional.gelu(mean), atol=1e-15, rtol=0)


def test_sampled_values_average_to_the_noiseless_one():
    """With the value of the latent's mean they do not: GELU is convex, and all it adds is one-sided."""
    critic, rollout = moved(agent_for(lm_head="none"), size=0.3).critic, made_up_rollout()
    with torch.no_grad():
        draws = [critic(replace(rollout, key_B=torch.arange(16) + 100 * i), None, None) for i in range(400)]
    mask = rollout.mask_BT
    gap = torch.stack([draw.sampled_BT - draw.mean_BT for draw in draws])[:, mask]
    z = gap.mean(dim=0) / gap.std(dim=0) * len(draws) ** 0.5
    assert abs(z.mean()) < 4 / len(z) ** 0.5 and abs(z.var() - 1) < 4 * (2 / len(z)) ** 0.5
    critic.head.exact = False
    shift = gap.mean(dim=0) + draws[0].mean_BT[mask] - critic(rollout, None, None).mean_BT[mask]
    assert (shift / gap.std(dim=0) * len(draws) ** 0.5).abs().mean() > 4


# What the frozen head reads


def test_entropy_and_surprise_golden():
    logp, entropy = token_scores(doubles([0.5, 0.25, 0.25]).log() + 7, torch.tensor([1]), Logits(3))
    found = [-logp.item(), entropy.item(), (-logp).exp().item()]
    assert found == pytest.approx([1.386294, 1.039721, 4], abs=1e-6)


def test_alignment_golden():
    reference, found = doubles([0.7, 0.2, 0.1]).log() - 3, doubles([0.5, 0.25, 0.25]).log()
    assert distribution_kl(reference, found, Logits(3)).item() == pytest.approx(0.0992728, abs=1e-7)
    assert distribution_kl(found, found, Logits(3)).item() == 0


def test_alignment_in_chunks_is_the_same():
    g = torch.Generator().manual_seed(0)
    reference, plain = (torch.randn(11, 5, generator=g).double() for _ in range(2))
    head = nn.Linear(5, 7, bias=False).double()

    def run(elements):
        hidden = plain.clone().requires_grad_()
        kl = distribution_kl(reference, hidden, head, elements=elements)
        (kl * torch.arange(11)).sum().backward()
        return kl.detach(), hidden.grad

    for whole, parts in zip(run(2**24), run(2 * 7 * 3), strict=True):
        assert_close(parts, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_before_training_the_head_reads_what_the_policy_says(backbone):
    rollout = made_up_rollout()
    agent = agent_for(backbone, lm_head="align")
    with torch.no_grad():
        scores, value = agent(rollout, reference_scores(rollout, seed=0))
        _, far = agent(rollout, reference_scores(rollout, seed=1))
        _, alone = agent(rollout)
    assert_close(value.entropy_BT, scores.entropy_BT, atol=1e-12, rtol=0)
    assert_close(value.nll_BT, -scores.logp_BT, atol=1e-12, rtol=0)
    assert value.align_BT.abs().max() < 1e-12 < far.align_BT[rollout.mask_BT].min()
    assert alone.align_BT.abs().max() == 0
    with torch.no_grad():
        wanted, found = (
            torch.log_softmax(agent.policy.head(reference_scores(rollout, seed=seed).hidden_BTD), -1) for seed in (1, 0)
        )
    expected = nn.functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)  # KL(wanted || found)
    assert_close(far.align_BT[rollout.mask_BT], expected[rollout.mask_BT], atol=1e-12, rtol=0)


def test_the_frozen_head_is_the_starting_policys_for_ever():
    policy = Policy(random_model())
    critic = Critic(BottleneckCritic(latent=8), policy, seed=0).double()
    start = policy.head.weight.detach().clone()
    with torch.no_grad():
        policy.head.weight += 1
    assert torch.equal(critic.head.output.weight, start)
    assert not critic.head.output.weight.requires_grad
    assert not [name for name, _ in critic.named_parameters() if "output" in name]
    assert not [name for name in critic.state_dict() if "output" in name]  # not saved either


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_the_terms_reach_the_states_and_nothing_frozen(backbone):
    rollout = made_up_rollout()
    reference = reference_scores(rollout)
    for term in ("entropy_BT", "nll_BT", "align_BT"):
        agent = moved(agent_for(backbone, lm_head="align"))
        getattr(agent(rollout, reference)[1], term)[rollout.mask_BT].sum().backward()
        trunk = agent.policy.backbone if backbone == "shared" else agent.critic.backbone
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trunk.parameters())
        assert agent.critic.head.output.weight.grad is None and reference.hidden_BTD.grad is None
        assert all(p.grad is None for p in agent.critic.head.parameters())
        assert agent.policy.head.weight.grad is None  # the policy's own output layer is not the frozen one


def test_a_critic_that_reads_nothing_keeps_no_head():
    head = BottleneckCritic(lm_head="none").make(16)
    assert not list(head.buffers()) and not head.reads_reference
    with pytest.raises(ValueError, match="lm_head"):
        BottleneckCritic().make(16)


# The algorithm


@pytest.mark.parametrize("frac", [0.05, 0.2, 0.5, 1.0])
def test_sets_hold_their_share_of_tokens(frac):
    g = torch.Generator().manual_seed(0)
    x, mask = torch.randn(30, 40, generator=g), torch.rand(30, 40, generator=g) < 0.7
    poisoned = torch.where(mask, x, float("nan"))
    chosen = top_tokens(poisoned, mask, frac)
    assert not (chosen & ~mask).any() and abs(int(chosen.sum()) - frac * int(mask.sum())) <= 1
    assert torch.equal(chosen, mask & (x >= torch.quantile(x[mask], 1 - frac)))
    assert x[chosen].min() > x[mask & ~chosen].max() if frac < 1 else True
    weights = share(chosen, mask) / mask.sum()
    assert (weights * x.double()).sum().item() == pytest.approx(x[chosen].mean().item())


def test_ties_enlarge_a_set_and_an_empty_one_counts_nothing():
    mask = torch.tensor([[True, True, True, True, False]])
    assert top_tokens(torch.tensor([[1.0, 2, 2, 0, 9]]), mask, 0.2).tolist() == [[False, True, True, False, False]]
    none = torch.zeros_like(mask)
    assert not top_tokens(torch.ones(1, 5), none, 0.2).any()
    assert share(none, mask).tolist() == [[0.0] * 5]


def test_error_weights_have_mean_one():
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 30, generator=g) < 0.7
    entropy, nll = (torch.where(mask, torch.rand(20, 30, generator=g).double() ** 3, float("nan")) for _ in range(2))
    for c in ((0.5, 0.5), (3.0, 0.0), (-1.0, 2.0)):
        weights = uncertainty_weights(entropy, nll, mask, c_entropy=c[0], c_perplexity=c[1])
        assert weights[mask].mean().item() == pytest.approx(1) and (weights[mask] > 0).all()
        assert (weights[~mask] == 0).all()
        assert weights[mask].max() / weights[mask].min() <= 5 / 0.1 + 1e-9
    plain = uncertainty_weights(entropy, nll, mask, c_entropy=0.0, c_perplexity=0.0)
    assert (plain[mask] == 1).all()
    equal = uncertainty_weights(torch.ones_like(nll), nll, mask, c_entropy=5.0, c_perplexity=0.0)
    assert (equal[mask] == 1).all()


def test_error_weights_by_hand():
    """Entropies 0 and 2 lie one (unbiased) deviation of sqrt(2) apart from their mean: z = -+1 / sqrt(2)."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    weights = uncertainty_weights(doubles([0, 2]), doubles([0, 0]), mask, c_entropy=1.0, c_perplexity=0.0)
    assert_close(weights, doubles([1 - 0.5**0.5, 1 + 0.5**0.5]), atol=1e-7, rtol=0)
    clipped = uncertainty_weights(doubles([0, 2]), doubles([0, 0]), mask, c_entropy=10.0, c_perplexity=0.0)
    assert_close(clipped, doubles([0.1, 5.0]) / 2.55, atol=1e-9, rtol=0)


@pytest.fixture
def batch():
    return batch_for(loop_for(built("algo", "algo=vrpo/lm_align", "algo.critic.latent=8")), made_up_rollout())


def one_token(batch, *, old, sampled, target, **terms):
    """Loss of one token with made-up estimates."""
    zero = doubles([0.0])
    index = torch.tensor([0])
    given = {f"{name}_BT": doubles([value]) for name, value in terms.items()}
    value = BottleneckValue(
        **({f"{name}_BT": zero for name in ("mean", "sampled", "kl", "entropy", "nll", "align")} | given)
    )
    value = replace(value, mean_BT=doubles([77.0]), sampled_BT=doubles([sampled]))
    rollout = rows(batch.rollout, index)
    rollout = replace(
        rollout, tokens_BL=rollout.tokens_BL[:, :2], attention_BL=torch.ones(1, 2, dtype=torch.bool),
        mask_BT=torch.ones(1, 1, dtype=torch.bool), logp_BT=zero,
    )  # fmt: skip
    row = replace(
        rows(batch, index), rollout=rollout, logp_BT=zero, value=Value(mean_BT=doubles([old])), reference=None
    )
    shares = {"entropy_BT": doubles([2.0]), "perplexity_BT": doubles([3.0]), "align_BT": doubles([5.0])}
    return value, row, Credit(advantage_BT=zero, target=doubles([target]), extra=shares)


def test_loss_by_hand(batch):
    algo = VRPO(
        critic=BottleneckCritic(lm_head="align"), bottleneck_coef=0.1, w_entropy=0.2, w_perplexity=0.3, w_align=0.4,
        value_clip=None, critic_coef=0.5,
    )  # fmt: skip
    value, row, credit = one_token(batch, old=0.0, sampled=0.6, target=1.0, kl=7.0, entropy=1.5, nll=2.5, align=0.5)
    loss = algo.critic_loss(value, row, credit)
    assert loss.total_BT.item() == pytest.approx(0.5 * (0.08 + 0.1 * 7 + 0.2 * 2 * 1.5 + 0.3 * 3 * 2.5 + 0.4 * 5 * 0.5))
    expected = {
        "value_error": 0.08, "bottleneck_kl_nats": 7.0, "aux_entropy_nats": 3.0, "aux_nll_nats": 7.5, "align_nats": 2.5
    }  # fmt: skip
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(expected)
    weighted = replace(credit, extra={**credit.extra, "error_BT": doubles([10.0])})
    assert (algo.critic_loss(value, row, weighted).total_BT - loss.total_BT).item() == pytest.approx(0.5 * 9 * 0.08)


def test_the_clip_range_lies_around_the_old_value_without_noise(batch):
    value, row, credit = one_token(batch, old=0.5, sampled=0.9, target=1.0)
    algo = VRPO(critic=BottleneckCritic(lm_head="none"), **OFF)
    assert algo.critic_loss(value, row, credit).total_BT.item() == pytest.approx(0.045)


def test_what_is_off_is_logged_as_zero_and_never_read(batch):
    nan = float("nan")
    value, row, credit = one_token(batch, old=0.5, sampled=0.9, target=1.0, kl=nan, entropy=nan, nll=nan, align=nan)
    loss = VRPO(critic=BottleneckCritic(lm_head="none"), **OFF).critic_loss(value, row, credit)
    assert loss.total_BT.isfinite().all()
    assert {name for name, term in loss.terms.items() if term.item() != 0} == {"value_error"}


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_with_everything_off_it_is_ppo(backbone):
    """On the same critic without noise: advantages, targets, every loss and every gradient, bit for bit."""
    critic = BottleneckCritic(backbone=backbone, latent=8, deterministic=True, lm_head="none")
    ppo, vrpo = PPO(critic=critic), VRPO(critic=critic, **OFF)
    batch = batch_for(loop_for(ppo), made_up_rollout())
    expected, found = ppo.credit(batch), vrpo.credit(batch)
    assert torch.equal(expected.advantage_BT, found.advantage_BT) and torch.equal(expected.target, found.target)
    expected, found = gradients(loop_for(ppo), batch), gradients(loop_for(vrpo), batch)
    assert any(gradient.abs().max() > 0 for name, gradient in expected.items() if name.startswith("critic"))
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name
    noisy = gradients(loop_for(VRPO(critic=replace(critic, deterministic=False), **OFF)), batch)
    assert not torch.equal(noisy["critic.head.mean.weight"], expected["critic.head.mean.weight"])


def test_the_actor_is_ppos():
    """Given the same values, no term of the critic's changes the policy's gradient."""
    vrpo = built("algo", "algo=vrpo", "algo.critic.latent=8")
    batch = batch_for(loop_for(vrpo), made_up_rollout())
    expected, found = gradients(loop_for(PPO(critic=ScalarCritic())), batch), gradients(loop_for(vrpo), batch)
    for name in (name for name in expected if name.startswith("policy")):
        assert torch.equal(expected[name], found[name]), name


def test_thresholds_come_from_the_annotated_rollout(batch):
    algo = built("algo", "algo=vrpo", "algo.top_frac=0.3")
    credit, mask = algo.credit(batch), batch.mask_BT
    chosen = top_tokens(batch.value.entropy_BT, mask, 0.3)
    assert torch.equal(credit.extra["entropy_BT"] > 0, chosen)
    weights = algo.token_weights(mask)
    mean = (weights * credit.extra["entropy_BT"] * batch.value.entropy_BT).sum()
    assert mean.item() == pytest.approx(batch.value.entropy_BT[chosen].mean().item())
    union = chosen | top_tokens(batch.value.nll_BT, mask, 0.3)
    assert torch.equal(credit.extra["align_BT"] > 0, union)
    assert not any(x.requires_grad for x in credit.extra.values())


def test_the_error_is_weighed_by_the_starting_policys_uncertainty():
    algo = built("algo", "algo=vrpo/token_weight", "algo.critic.latent=8", "algo.c_entropy=0.7", "algo.c_perplexity=0")
    batch = batch_for(loop_for(algo), made_up_rollout())
    entropy = batch.reference.entropy_BT[batch.mask_BT]
    z = (entropy - entropy.mean()) / entropy.std()
    weights = (1 + 0.7 * z).clamp(0.1, 5)
    assert_close(algo.credit(batch).extra["error_BT"][batch.mask_BT], weights / weights.mean(), atol=1e-6, rtol=0)
    surprised = replace(algo, c_entropy=0.0, c_perplexity=0.7).credit(batch).extra["error_BT"][batch.mask_BT]
    assert surprised.argmin() == batch.reference.logp_BT[batch.mask_BT].argmax()


@pytest.mark.parametrize("preset", PRESETS)
def test_poison_outside_the_mask_of_anything_recorded_is_never_read(preset):
    algo = built("algo", f"algo={preset}", "algo.critic.latent=8")
    clean = batch_for(loop_for(algo), made_up_rollout())

    def poisoned(record):
        changed = {}
        for f in fields(record):
            x = getattr(record, f.name)
            if isinstance(x, torch.Tensor):
                mask = clean.mask_BT if x.dim() == 2 else clean.mask_BT[..., None]
                changed[f.name] = torch.where(mask, x, float("nan"))
        return replace(record, **changed)

    dirty = replace(clean, value=poisoned(clean.value), reference=clean.reference and poisoned(clean.reference))
    expected, found = algo.credit(clean), algo.credit(dirty)
    for name, x in expected.extra.items():
        assert torch.equal(x, found.extra[name]), name
    clean_gradients, dirty_gradients = gradients(loop_for(algo), clean), gradients(loop_for(algo), dirty)
    for name, gradient in clean_gradients.items():
        assert torch.equal(gradient, dirty_gradients[name]), name


def test_presets_ask_for_what_they_read():
    built_ = {preset: built("algo", f"algo={preset}") for preset in PRESETS}
    assert {p: (a.needs_reference, a.critic.lm_head) for p, a in built_.items()} == {
        "vrpo": (False, "self"), "vrpo/lm_align": (True, "align"), "vrpo/token_weight": (True, "none")
    }  # fmt: skip
    for algo in built_.values():  # the terms that are on have values; the others are 0
        loop = loop_for(algo)
        assert loop.collector.agent.critic.head.reads_reference == (algo.w_align > 0)
        batch = batch_for(loop, made_up_rollout())
        sums = {}
        loop._apply = lambda: {}
        loop._update(batch, algo.credit(batch), torch.arange(16), sums, critic_only=False)
        on = {
            "critic/aux_entropy_nats": algo.w_entropy, "critic/aux_nll_nats": algo.w_perplexity,
            "critic/align_nats": algo.w_align, "critic/bottleneck_kl_nats": algo.bottleneck_coef,
        }  # fmt: skip
        for name, weight in on.items():
            assert (sums[name] > 0) == (weight > 0), name
        assert float(sums["critic/aux_entropy_nats"]) < torch.tensor(VOCABULARY).log()


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_alignment_acts_in_critic_warm_up_too(backbone):
    """Then the policy is not asked for scores, yet the reference must reach the critic."""
    loop = loop_for(built("algo", "algo=vrpo/lm_align", "algo.critic.latent=8", f"algo.critic.backbone={backbone}"))
    batch, sums = batch_for(loop, made_up_rollout()), {}
    loop._update(batch, loop.algo.credit(batch), torch.arange(16), sums, critic_only=True)
    assert sums["critic/align_nats"] > 0.1  # the frame's reference is another model


def test_a_resumed_run_reads_with_the_same_head(tmp_path):
    """The frozen head is not in the checkpoint: it is made again, and training goes on bit for bit."""
    algo = built("algo", "algo=vrpo", "algo.critic.latent=8", "algo.critic.backbone=shared")
    one, other = (loop_for(algo, dtype=torch.float32) for _ in range(2))
    batch = batch_for(one, made_up_rollout(dtype=torch.float32))
    one._update(batch, algo.credit(batch), torch.arange(16), {}, critic_only=False)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    lm = LanguageModel(one.collector.agent.policy.model, tokenizer, {})
    checkpoint.restore(other, checkpoint.save(one, lm, tmp_path, step=1, keep_last=1))
    for loop in (one, other):
        loop._update(batch, algo.credit(batch), torch.arange(16), {}, critic_only=False)
    for (name, a), b in zip(one.collector.agent.named_parameters(), other.collector.agent.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(critic=BottleneckCritic(), w_align=0.1), "critic.lm_head=align"),
        (dict(critic=BottleneckCritic(lm_head="none")), "critic.lm_head=self"),
        (dict(critic=BottleneckCritic(deterministic=True)), "bottleneck_coef=0"),
        (dict(critic=BottleneckCritic(), top_frac=0.0), "greater than 0"),
        (dict(critic=ScalarCritic()), "BottleneckCritic"),
    ],
)
def test_parts_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises((ValueError, ValidationError), match=message):
        VRPO(**overrides)
