"""What holds for every sampler, and that they say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from noisyrl.rollout.decoder import Decoder, decodable
from noisyrl.rollout.fast import FastSampler
from noisyrl.rollout.hf import GenerateSampler
from noisyrl.spec import InputError

SAMPLERS = [FastSampler, GenerateSampler]
both = pytest.mark.parametrize("sampler", SAMPLERS)


def sample(sampler, lm, task, prompts=None, **options):
    options = {"samples": 4, "max_tokens": 40} | options
    return sampler(**options)(lm, task, prompts or task.prompts("train"), seed=3, step=5)


def said(rollout):
    """What each sample is, by name."""
    keys = [(p.uid, int(s)) for p, s in zip(rollout.prompts, rollout.sample_B, strict=True)]
    return dict(zip(keys, rollout.turns, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.0, 0.7])
@pytest.mark.parametrize("own_step", [True, False])
@pytest.mark.parametrize(("family", "arch"), [("testbed", "qwen3"), ("llama3", "llama"), ("chatml", "qwen3")])
def test_fast_says_what_generate_says(lm_of, toy, family, arch, own_step, temperature):
    lm = lm_of(family, arch)
    if not own_step:  # of a model that is watched, fast calls the forward pass
        lm.model.register_forward_hook(lambda *watched: None)
    assert decodable(lm.model) == own_step
    fast, hf = (sample(sampler, lm, toy, temperature=temperature) for sampler in SAMPLERS)
    assert fast.turns == hf.turns
    for name in ("tokens_BL", "attention_BL", "mask_BT", "group_B", "sample_B", "finished_B"):
        assert torch.equal(getattr(fast, name), getattr(hf, name)), name
    torch.testing.assert_close(fast.logp_BT, hf.logp_BT, atol=1e-5, rtol=0)
    if temperature == 1.0:  # else the comparison would prove little
        assert len({len(turns) for turns in fast.turns}) > 1 and len(set(fast.turns)) > 15


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_fast_says_what_generate_says_with_a_sliding_window(lm_of, toy, attention):
    options = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    lm = lm_of(**options, attn_implementation=attention)
    assert set(lm.model.config.layer_types) == {"full_attention", "sliding_attention"}
    assert sample(FastSampler, lm, toy).turns == sample(GenerateSampler, lm, toy).turns


@both
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_recorded_log_probs_are_those_of_a_plain_forward_pass(lm, toy, sampler, temperature):
    rollout = sample(sampler, lm, toy, temperature=temperature)
    length = rollout.mask_BT.shape[1]
    for b in range(len(rollout.prompts)):
        tokens = rollout.tokens_BL[b][rollout.attention_BL[b]][None]
        kept = int(rollout.attention_BL[b, -length:].sum())
        with torch.no_grad():
            table = (lm.model(tokens).logits[:, :-1] / temperature).log_softmax(-1)
        logp = table.gather(2, tokens[:, 1:, None])[0, -kept:, 0]
        expected = torch.zeros(length)
        expected[:kept] = logp
        torch.testing.assert_close(rollout.logp_BT[b], expected * rollout.mask_BT[b], atol=1e-5, rtol=0)


@both
def test_layout_changes_no_text(lm, toy, sampler):
    prompts = toy.prompts("train")
    whole = said(sample(sampler, lm, toy, batch_rows=64))
    assert said(sample(sampler, lm, toy, batch_rows=3)) == whole
    assert said(sample(sampler, lm, toy, prompts[::-1])) == whole
    some = said(sample(sampler, lm, toy, prompts[1:3], samples=2))
    assert some == {key: whole[key] for key in some} and len(some) == 4


@both
def test_rows_are_in_order(lm, toy, sampler):
    prompts = toy.prompts("train")[::-1]
    rollout = sample(sampler, lm, toy, prompts, samples=3, batch_rows=4)
    assert [p.uid for p in rollout.prompts] == [p.uid for p in prompts for _ in range(3)]
    assert rollout.group_B.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert rollout.sample_B.tolist() == [0, 1, 2] * 5


@both
def test_seed_and_step_change_the_draws(lm, toy, sampler):
    make = sampler(samples=4, max_tokens=30)
    prompts = toy.prompts("train")
    runs = [make(lm, toy, prompts, seed=seed, step=step).turns for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert runs[0] == runs[3] and runs[0] != runs[1] and runs[0] != runs[2]


@both
def test_layout_of_a_dialogue(chain, scripted, sampler):
    rollout = sample(sampler, chain, scripted, samples=1)
    ids = chain.tokenizer.convert_tokens_to_ids
    turn = [ids("A"), ids("B"), ids("<|end|>")]
    user = [ids("<|user|>"), ids("u"), ids("<|end|>"), ids("<|assistant|>")]
    short = [ids("<|pad|>"), ids("<|user|>"), ids("p"), ids("<|end|>"), ids("<|assistant|>")]
    longer = [ids("<|user|>"), ids("q"), ids("q"), ids("<|end|>"), ids("<|assistant|>")]
    assert rollout.tokens_BL.tolist() == [prompt + turn + user + turn for prompt in (short, longer)]
    assert rollout.attention_BL.tolist() == [[False] + [True] * 14, [True] * 15]
    assert rollout.mask_BT.tolist() == [[True] * 3 + [False] * 4 + [True] * 3] * 2
    assert rollout.turns == [("AB", "u", "AB")] * 2 and rollout.texts == ["AB\nu\nAB"] * 2
    assert rollout.finished_B.tolist() == [True, True]
    assert (rollout.logp_BT[~rollout.mask_BT] == 0).all()


@both
@pytest.mark.parametrize(
    ("max_tokens", "outcome"),
    [
        (2, (2, ("AB",), False)),  # cut in the first turn
        (3, (3, ("AB",), False)),  # the turn fits, the user's reply does not
        (7, (3, ("AB",), False)),  # the reply would fit, but leave no room for an answer
        (8, (8, ("AB", "u", "A"), False)),  # room for one token of an answer
        (9, (9, ("AB", "u", "AB"), False)),  # everything but the end-of-turn token
        (10, (10, ("AB", "u", "AB"), True)),
    ],
)
def test_limits(chain, scripted, sampler, max_tokens, outcome):
    length, turns, finished = outcome
    rollout = sample(sampler, chain, scripted, samples=1, max_tokens=max_tokens)
    assert rollout.mask_BT.shape[1] == length
    assert rollout.turns == [turns] * 2
    assert rollout.finished_B.tolist() == [finished] * 2


@both
def test_padding_with_the_end_token_hides_nothing(lm_of, toy, sampler):
    plain = sample(sampler, lm_of(), toy)
    lm = lm_of()
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    padded = sample(sampler, lm, toy)
    assert torch.equal(plain.attention_BL, padded.attention_BL) and torch.equal(plain.mask_BT, padded.mask_BT)
    assert not plain.attention_BL.all(), "nothing was padded: the test would prove nothing"
    real = plain.attention_BL
    assert torch.equal(plain.tokens_BL[real], padded.tokens_BL[real])
    ended = padded.finished_B.nonzero()[:, 0]
    last = padded.attention_BL.shape[1] - 1 - padded.attention_BL.flip(1).int().argmax(1)
    assert len(ended) and (padded.tokens_BL[ended, last[ended]] == lm.tokenizer.eos_token_id).all()


@both
def test_either_end_token_ends_a_turn(chain, scripted, sampler):
    letter = chain.tokenizer.convert_tokens_to_ids("B")
    chain.model.generation_config.eos_token_id = [letter]
    rollout = sample(sampler, chain, scripted, samples=1)
    assert rollout.turns == [("A", "u", "A")] * 2 and rollout.finished_B.all()


@both
def test_leaves_no_trace(lm_of, toy, sampler):
    lm = lm_of()
    lm.model.train()
    config, state = lm.model.generation_config, torch.get_rng_state()
    rollout = sample(sampler, lm, toy)
    assert lm.model.training and lm.model.generation_config is config
    assert torch.equal(state, torch.get_rng_state())
    lm.model(rollout.tokens_BL, labels=rollout.tokens_BL).loss.backward()  # tensors of inference mode would refuse


def test_generation_defaults_of_a_checkpoint_do_not_bend_the_distribution(lm_of, toy):
    plain = sample(GenerateSampler, lm_of(), toy).turns
    lm = lm_of()
    lm.model.generation_config.repetition_penalty = 3.0
    lm.model.generation_config.min_new_tokens = 20
    assert sample(GenerateSampler, lm, toy).turns == plain


@pytest.mark.parametrize(("name", "kind"), [("fast", FastSampler), ("hf", GenerateSampler)])
def test_every_file_of_the_group_builds(name, kind):
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        built = instantiate(compose(overrides=[f"+rollout={name}"]).rollout)
    assert built == kind()


def test_fast_refuses_what_it_cannot_cache(lm_of, toy):
    lm = lm_of()
    lm.model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="rollout=hf"):
        sample(FastSampler, lm, toy)


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_what_samples_have_in_common_is_decoded_once(lm, toy, monkeypatch, temperature):
    slots, step = [], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, tokens: slots.append(len(tokens)) or step(self, tokens))
    rollout = sample(FastSampler, lm, toy, temperature=temperature)
    width = rollout.tokens_BL.shape[1] - rollout.mask_BT.shape[1]
    length_B = rollout.attention_BL[:, width:].sum(1)
    for t, found in enumerate(slots):
        live = (length_B > t + 1).nonzero()[:, 0]
        said = {(int(rollout.group_B[row]), *rollout.tokens_BL[row, width : width + t + 1].tolist()) for row in live}
        assert len(said) <= found < len(said) + max(2, found / 16)
    assert max(slots) == 5 if temperature == 0 else len(set(slots)) > 5


def test_the_cache_grows_past_its_first_room(chain, scripted):
    """A turn longer than the room first given: the buffers grow, the texts stay."""
    long = "u" * 300
    type(scripted).replies = (long,)
    try:
        rollout = sample(FastSampler, chain, scripted, samples=1, max_tokens=400)
    finally:
        type(scripted).replies = ("u",)
    assert rollout.turns == [("AB", long, "AB")] * 2 and rollout.finished_B.all()
