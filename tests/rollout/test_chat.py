"""Prompts and user replies in tokens, whatever the tokenizer's chat template."""

from __future__ import annotations

import numpy as np
import pytest

from noisyrl.models.base import LanguageModel
from noisyrl.rollout.chat import Chat, all_prompt_tokens, end_tokens, prompt_tokens
from noisyrl.rollout.fast import FastSampler
from noisyrl.rollout.hf import GenerateSampler
from noisyrl.spec import InputError
from noisyrl.types import Prompt
from tests.evaluation.stage import Toy, random_model

SHOWN = {
    "chatml": "\n<|im_start|>user\nhi you<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\nhi you<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "testbed": "<|user|>hi you<|end|><|assistant|>",
}


def chat_of(tokenizer):
    return Chat(tokenizer, frozenset({tokenizer.eos_token_id}))


@pytest.mark.parametrize("family", SHOWN)
def test_reply_is_what_the_template_puts_between_two_assistant_turns(tokenizer_of, family):
    tokenizer = tokenizer_of(family)
    reply = chat_of(tokenizer).reply("hi you")
    assert tokenizer.decode(reply) == SHOWN[family]
    # The whole conversation, rendered at once, must be what the pieces add up to.
    talk = [("user", "q"), ("assistant", "fine"), ("user", "hi you")]
    talk = [{"role": role, "content": content} for role, content in talk]
    whole = prompt_tokens(tokenizer, Prompt(tuple(talk), "", "t", "u", "d"))
    start = prompt_tokens(tokenizer, Prompt(tuple(talk[:1]), "", "t", "u", "d"))
    said = tokenizer.encode("fine", add_special_tokens=False) + [tokenizer.eos_token_id]
    assert start + said + reply == whole


def test_white_space_before_the_end_token_is_dropped_with_it(tokenizer_of):
    tokenizer = tokenizer_of("testbed")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.content }}", "{{ m.content + ' ' }}")
    assert tokenizer.decode(chat_of(tokenizer).reply("x")) == "<|user|>x <|end|><|assistant|>"


def test_an_end_token_inside_the_reply_stays(tokenizer_of):
    """A template without an end token after the assistant's turn: the user's own must not be eaten."""
    tokenizer = tokenizer_of("testbed")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}assistant:"
    assert tokenizer.decode(chat_of(tokenizer).reply("x<|end|>")) == "\nuser:x<|end|>\nassistant:"


def test_beginning_of_text_appears_once(tokenizer_of):
    tokenizer = tokenizer_of("llama3")
    tokens = prompt_tokens(tokenizer, Prompt(({"role": "user", "content": "q"},), "", "t", "u", "d"))
    assert tokens.count(tokenizer.bos_token_id) == 1 and tokens[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("family", SHOWN)
def test_many_prompts_at_once_are_the_same_tokens(tokenizer_of, family):
    """Of different lengths, and with the text of a special token in one: nothing is padded, cut or added."""
    tokenizer = tokenizer_of(family)
    contents = ["q", "a much longer question ?", f"x {tokenizer.eos_token} y"]
    prompts = [Prompt(({"role": "user", "content": content},), "", "t", content, "d") for content in contents]
    for thinking in (False, True):
        expected = [prompt_tokens(tokenizer, prompt, thinking=thinking) for prompt in prompts]
        assert all_prompt_tokens(tokenizer, prompts, thinking=thinking) == expected
    assert len({len(tokens) for tokens in expected}) == 3


def test_text_of_a_turn(tokenizer_of):
    tokenizer = tokenizer_of("chatml")
    tokens = tokenizer.encode(" yes no\n<|im_start|>", add_special_tokens=False)
    assert chat_of(tokenizer).text(np.array(tokens)) == "yes no"


def test_missing_template_says_what_to_do(tokenizer_of):
    tokenizer = tokenizer_of("testbed")
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template.*chat_template.jinja"):
        prompt_tokens(tokenizer, Prompt(({"role": "user", "content": "q"},), "", "t", "u", "d"))


def test_template_that_refuses_names_the_roles(tokenizer_of):
    tokenizer = tokenizer_of("testbed")
    tokenizer.chat_template = "{{ raise_exception('system is not allowed') }}"
    with pytest.raises(InputError, match="system is not allowed"):
        prompt_tokens(tokenizer, Prompt(({"role": "system", "content": "q"},), "", "t", "u", "d"))


def test_end_tokens_are_the_union_of_model_and_tokenizer(lm_of):
    lm = lm_of()
    lm.model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(lm) == {7, 9, lm.tokenizer.eos_token_id}
    lm.model.generation_config.eos_token_id = 5
    assert end_tokens(lm) == {5, lm.tokenizer.eos_token_id}


def test_no_end_token_at_all_is_refused(lm_of):
    lm = lm_of()
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer.eos_token = None
    with pytest.raises(InputError, match="end-of-turn"):
        end_tokens(LanguageModel(lm.model, lm.tokenizer, {}))


def test_a_thinking_mode_is_off_unless_asked_for(tokenizer_of):
    """As Qwen3's: the template thinks unless it is told not to, then it closes the thoughts before they begin."""
    tokenizer = tokenizer_of("chatml")
    closed = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    tokenizer.chat_template += closed
    prompt = Prompt(({"role": "user", "content": "hi you"},), "", "t", "u", "d")
    shown = {
        thinking: tokenizer.decode(prompt_tokens(tokenizer, prompt, thinking=thinking)) for thinking in (False, True)
    }
    assert shown[False] == shown[True] + "<think></think>" == tokenizer.decode(prompt_tokens(tokenizer, prompt))
    off, on = (Chat(tokenizer, frozenset({tokenizer.eos_token_id}), thinking) for thinking in (False, True))
    for _ in range(2):
        assert tokenizer.decode(off.reply("hi you")) == tokenizer.decode(on.reply("hi you")) + "<think></think>"


@pytest.mark.parametrize("sampler", [FastSampler, GenerateSampler])
def test_samplers_pass_the_thinking_mode_on(sampler):
    lm = random_model()
    lm.tokenizer.chat_template += "{% if enable_thinking %}!{% endif %}"
    prompt = Toy().prompts("train")[0]
    lengths = {}
    for thinking in (False, True):
        rollout = sampler(samples=1, max_tokens=2, enable_thinking=thinking)(lm, Toy(), [prompt], seed=0, step=0)
        lengths[thinking] = rollout.tokens_BL.shape[1] - rollout.mask_BT.shape[1]
    assert lengths[True] == lengths[False] + 1
