"""The oracle is right: exact values against enumeration, simulation and a real sampler."""

from dataclasses import replace
from itertools import islice, product

import numpy as np
import pytest
import torch

from noisyrl.models.base import LanguageModel
from noisyrl.models.tiny import FromScratch
from noisyrl.models.warm_start import WarmStart
from noisyrl.rollout.chat import prompt_tokens
from noisyrl.rollout.fast import FastSampler
from noisyrl.spec import InputError
from noisyrl.tasks.oracle import Automaton, Oracle
from noisyrl.tasks.oracle_truth import evaluate, observed, optimise, truths, wasserstein

TASK = Oracle()
STATES, LETTERS, MOVES = 5, 3, 4


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def automaton(random):
    """Any automaton: three letters, transitions that differ from move to move."""
    return Automaton(random.integers(STATES, size=(MOVES, STATES, LETTERS)), np.array([0, 1, 0, 1, 0], bool))


def random_policy(random):
    return random.dirichlet(np.ones(LETTERS), size=(MOVES, STATES))


def chance(automaton, policy_TSA, state, word):
    """Probability that a policy plays a word."""
    product = 1.0
    for policy_SA, step_SA, letter in zip(policy_TSA, automaton.step_TSA, word, strict=True):
        product, state = product * policy_SA[state, letter], step_SA[state, letter]
    return product


def test_values_are_sums_over_all_words(automaton, random):
    policy = random_policy(random)
    words = list(product(range(LETTERS), repeat=MOVES))
    for state in range(STATES):
        enumerated = sum(
            chance(automaton, policy, state, w) * automaton.accept_S[automaton.end(state, w)] for w in words
        )
        assert evaluate(automaton, policy)[0, state] == pytest.approx(enumerated, abs=1e-12)


def simulate(automaton, policy_TSA, random, *, rho, plays=20_000):
    """[S] acceptance rate if nature takes the worst successor, by its value, with probability rho at every move."""
    value_TS = evaluate(automaton, policy_TSA, rho=rho)
    rates = []
    for start in range(STATES):
        state_N = np.full(plays, start)
        for t, step_SA in enumerate(automaton.step_TSA):
            letter_N = (random.random(plays)[:, None] > policy_TSA[t, state_N].cumsum(axis=1)).sum(axis=1)
            worst_N = value_TS[t + 1][step_SA[state_N]].argmin(axis=1)
            letter_N = np.where(random.random(plays) < rho, worst_N, letter_N.clip(max=LETTERS - 1))
            state_N = step_SA[state_N, letter_N]
        rates.append(automaton.accept_S[state_N].mean())
    return np.array(rates)


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_values_are_what_a_simulation_gives(automaton, random, rho):
    policy = random_policy(random)
    error = 5 * 0.5 / np.sqrt(20_000)
    np.testing.assert_allclose(
        evaluate(automaton, policy, rho=rho)[0], simulate(automaton, policy, random, rho=rho), atol=error
    )


def test_robust_values_fall_from_the_value_to_the_worst_case(automaton, random):
    policy = random_policy(random)
    values = np.stack([evaluate(automaton, policy, rho=rho) for rho in (0.0, 0.1, 0.3, 0.7, 1.0)])
    assert (np.diff(values, axis=0) <= 1e-12).all() and (values[0, 0] - values[2, 0] > 0.01).all()
    words = list(product(range(LETTERS), repeat=MOVES))
    worst = [min(automaton.accept_S[automaton.end(state, word)] for word in words) for state in range(STATES)]
    np.testing.assert_array_equal(values[-1, 0], worst)


def test_a_constant_worst_case_is_a_discount(automaton, random):
    """algorithms.md section 5: the operator with v_min = 0 is a discount of 1 - rho per move."""
    policy = random_policy(random)
    robust, discount_T1 = evaluate(automaton, policy, rho=0.2, worst=0.0), 0.8 ** np.arange(MOVES, -1, -1)
    np.testing.assert_allclose(robust, discount_T1[:, None] * evaluate(automaton, policy))


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_no_policy_beats_the_optimal_one(automaton, random, rho):
    policy, best = optimise(automaton, rho=rho)
    np.testing.assert_allclose(evaluate(automaton, policy, rho=rho), best)
    for _ in range(50):
        assert (evaluate(automaton, random_policy(random), rho=rho) <= best + 1e-12).all()


def test_optimal_values_are_maxima_over_all_words(automaton):
    words = list(product(range(LETTERS), repeat=MOVES))
    reachable = [max(automaton.accept_S[automaton.end(state, word)] for word in words) for state in range(STATES)]
    np.testing.assert_array_equal(optimise(automaton)[1][0], reachable)


def test_observed_rewards_mix_the_error_rates():
    assert observed(np.array([0.0, 1.0, 0.5]), fp=0.1, fn=0.3).tolist() == pytest.approx([0.1, 0.7, 0.4])


def test_wasserstein_distance_to_a_coin(random):
    """By hand, and against the distance between large samples."""
    atoms = np.array([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [2.0, 2.0, 2.0, -1.0]])
    found = wasserstein(atoms, np.array([0.5, 0.5, 0.2, 0.75]))
    np.testing.assert_allclose(found, [0.0, 0.25, 0.5, 1.0])
    from scipy.stats import wasserstein_distance

    atoms = random.normal(size=(3, 7))
    coins = [np.array([0.0] * 70 + [1.0] * 30), np.zeros(100), np.array([0.0] * 5 + [1.0] * 95)]
    reference = [wasserstein_distance(row, coin) for row, coin in zip(atoms, coins, strict=True)]
    np.testing.assert_allclose(wasserstein(atoms, np.array([0.3, 0.0, 0.95])), reference)


def test_the_automaton_and_the_grader_agree():
    for prompt in TASK.prompts("test")[::7]:
        start = TASK.state(TASK.start(prompt))
        for word in product("01", repeat=TASK.moves):
            end = TASK.automaton.end(start, [int(letter) for letter in word])
            assert TASK.grade(prompt, ["".join(word)]).score == TASK.automaton.accept_S[end]


def test_every_word_is_right_for_exactly_half_of_the_starts():
    prompts = TASK.prompts("test")
    for word in product("01", repeat=TASK.moves):
        assert sum(TASK.grade(prompt, ["".join(word)]).score for prompt in prompts) == len(prompts) / 2


def test_the_teacher_is_right_half_of_the_time_greedy_or_not():
    starts = [TASK.state(start) for start in range(TASK.starts)]
    greedy = np.eye(2)[TASK.teacher_TSA.argmax(axis=2)]
    for policy in (TASK.teacher_TSA, greedy):
        assert evaluate(TASK.automaton, policy)[0, starts].mean() == pytest.approx(0.5)
    assert (optimise(TASK.automaton)[1][0, starts] == 1).all()


NO_WORDS = ["0101", "010101", "0 1 0 1 1", "01012", "0101a", "", "٠١٠١١", "01011\n"]


@pytest.mark.parametrize("turns", [*([text] for text in NO_WORDS), [], ["01011", "?", "no"]])
def test_what_is_no_word_is_wrong(turns):
    for prompt in TASK.prompts("test")[::5]:
        assert TASK.grade(prompt, turns).score == 0 and TASK.grade(prompt, turns).extracted is None


def test_splits_are_disjoint_and_balanced_and_the_teacher_keeps_to_training():
    train, test = (TASK.prompts(split) for split in TASK.splits)
    questions = [{prompt.messages[0]["content"] for prompt in split} for split in (train, test)]
    assert [len(found) for found in questions] == [len(train), len(test)] == [144, 120]
    assert len({prompt.uid for prompt in [*train, *test]}) == 264
    taught = {conversation[0]["content"] for conversation in islice(TASK.demonstrations(), 5000)}
    assert taught == questions[0] and not taught & questions[1]
    for split, each in ((train, 12), (test, 10)):
        assert np.bincount([TASK.start(prompt) for prompt in split]).tolist() == [each] * TASK.starts


def test_another_world_has_other_keys_and_habits():
    other = replace(TASK, world=1)
    assert [other.key(start) for start in range(12)] != [TASK.key(start) for start in range(12)]
    assert (other.teacher_TSA != TASK.teacher_TSA).any()
    assert next(other.demonstrations()) != next(TASK.demonstrations())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="moves=4"):
        Oracle(moves=4)
    with pytest.raises(InputError, match="no split 'ood'"):
        TASK.prompts("ood")
    with pytest.raises(ValueError, match="multiple of 2"):
        Oracle(starts=3)


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    """A model that has not quite learned the language: sometimes it says what is no word."""
    short = WarmStart(steps=300, rising_steps=20)
    spec = FromScratch(hidden=32, layers=2, intermediate=32, heads=2, kv_heads=1, head_dim=16, warm_start=short,
                       cache_dir=str(tmp_path_factory.mktemp("cache")))  # fmt: skip
    return spec.load(TASK)


@torch.no_grad()
def said(lm, context, tokens, temperature):
    """Probability that a model says these tokens, one forward pass each."""
    found = 1.0
    for place, token in enumerate(tokens):
        logits_V = lm.model(torch.tensor([[*context, *tokens[:place]]])).logits[0, -1].double()
        found *= float((logits_V / temperature).softmax(dim=-1)[token])
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_truth_about_a_language_model_is_a_sum_over_its_words(lm, temperature):
    prompt = TASK.prompts("test")[3]
    (truth,) = truths(lm, TASK, [prompt], temperature=temperature)
    context, end = prompt_tokens(lm.tokenizer, prompt), lm.tokenizer.eos_token_id
    words = ["".join(word) for word in product("01", repeat=TASK.moves)]
    tokens = [lm.tokenizer.encode(word) for word in words]
    whole_W = np.array([said(lm, context, [*t, end], temperature) for t in tokens])
    right_W = np.array([TASK.grade(prompt, [word]).score for word in words])
    assert 1e-3 < truth.leak == pytest.approx(1 - whole_W.sum(), abs=1e-5)
    for row, place in ((0, 0), (5, 0), (5, 2), (21, 3), (30, 5)):
        begins = [word[:place] == words[row][:place] for word in words]
        reached = said(lm, context, tokens[row][:place], temperature)
        assert truth.value_WT[row, place] == pytest.approx((whole_W * right_W)[begins].sum() / reached, abs=1e-5)
        assert truth.visit_WT[row, place] * sum(begins) == pytest.approx(reached, abs=1e-5)


def test_the_truth_about_a_language_model_is_what_a_sampler_gives(lm):
    prompts = [TASK.prompts("test")[place] for place in (0, 33, 77)]
    samples, wrong = 4000, 0
    rollout = FastSampler(samples=samples, max_tokens=TASK.moves + 3)(lm, TASK, prompts, seed=0, step=0)
    scores = [TASK.grade(prompt, turns).score for prompt, turns in zip(rollout.prompts, rollout.turns, strict=True)]
    for truth, score_G in zip(truths(lm, TASK, prompts), np.array(scores).reshape(3, samples), strict=True):
        assert truth.gap < 0.02
        wrong += not -0.04 < score_G.mean() - truth.value < 0.04 + truth.gap  # five standard errors
    assert wrong == 0


def test_the_rollout_of_a_truth_is_what_a_sampler_would_have_recorded(lm):
    (truth,) = truths(lm, TASK, [TASK.prompts("test")[0]])
    drawn = FastSampler(samples=64, max_tokens=TASK.moves + 3)(lm, TASK, [TASK.prompts("test")[0]], seed=0, step=0)
    known = {
        tuple(row.tolist()): logp_T for row, logp_T in zip(truth.rollout.tokens_BL, truth.rollout.logp_BT, strict=True)
    }
    length, found = truth.rollout.tokens_BL.shape[1], 0
    for row, mask_T, logp_T in zip(drawn.tokens_BL, drawn.mask_BT, drawn.logp_BT, strict=True):
        if mask_T.sum() == TASK.moves + 1 and (same := known.get(tuple(row[:length].tolist()))) is not None:
            torch.testing.assert_close(logp_T[: TASK.moves + 1], same, atol=1e-5, rtol=1e-5)
            found += 1
    assert found > 10


def test_letters_in_several_tokens_are_refused(lm):
    class Letterless:
        encode = staticmethod(lambda letter, **_: [1, 2])

    with pytest.raises(InputError, match="set model=tiny"):
        truths(replace(lm, tokenizer=Letterless()), TASK, TASK.prompts("test")[:1])
