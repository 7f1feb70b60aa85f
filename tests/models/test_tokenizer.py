from itertools import islice

import numpy as np
import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from noisyrl.models import tokenizer as tokenizers
from noisyrl.models.warm_start import learned
from noisyrl.tasks.mix import Mix

CHAT = [
    {"role": "user", "content": "table : city rome"},
    {"role": "assistant", "content": "ask food"},
    {"role": "user", "content": "food thai"},
    {"role": "assistant", "content": "call table city = rome"},
]


def contents(count):
    return [message["content"] for messages in islice(Mix().demonstrations(), count) for message in messages]


@pytest.fixture(scope="module")
def words():
    return tokenizers.build(contents(3000), vocab_tokens=700, max_context=256)


def test_any_text_survives_the_round_trip(words):
    prompts = [p.messages[0]["content"] for split in ("test", "ood") for p in Mix().prompts(split)]
    strange = ["", " ", "a  b\n\tc", "x=1,y=22", "Zürich \u4f60\u597d \U0001f600", "ans3"]
    for text in [*prompts, *contents(1000), *strange]:
        assert words.decode(words(text)["input_ids"]) == text


def test_words_of_the_testbed_and_digits_are_single_tokens(words):
    assert words.tokenize("start 7 , add 4 . result ?") == ["start", "Ġ7", "Ġ,", "Ġadd", "Ġ4", "Ġ.", "Ġresult", "Ġ?"]
    assert words.tokenize(" 1234") == ["Ġ1", "2", "3", "4"]
    assert len(words) <= 700


def test_the_template_ends_assistant_turns_and_opens_the_next(words):
    assert words.apply_chat_template(CHAT, tokenize=False) == (
        "<|user|>table : city rome<|assistant|>ask food<|end|>"
        "<|user|>food thai<|assistant|>call table city = rome<|end|>"
    )
    opened = words.apply_chat_template(CHAT[:3], tokenize=False, add_generation_prompt=True)
    assert opened == "<|user|>table : city rome<|assistant|>ask food<|end|><|user|>food thai<|assistant|>"
    assert (words.eos_token, words.pad_token) == ("<|end|>", "<|pad|>") and words.eos_token_id != words.pad_token_id


def test_a_role_without_a_place_in_the_template_is_refused(words):
    with pytest.raises(TemplateError, match="not system"):
        words.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_the_quick_rendering_and_the_learned_tokens_are_those_of_the_template(words):
    shown = words.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    tokens = words(tokenizers.render(CHAT))["input_ids"]
    assert tokens == shown["input_ids"]
    mask = learned(np.array([tokens]), words)[0]
    assert mask.tolist() == [bool(m) for m in shown["assistant_masks"]]
    chosen = words.convert_ids_to_tokens(np.array(tokens)[mask])
    assert chosen == ["ask", "Ġfood", "<|end|>", "call", "Ġtable", "Ġcity", "Ġ=", "Ġrome", "<|end|>"]


def test_padding_is_never_learned(words):
    tokens = words(tokenizers.render(CHAT))["input_ids"]
    padded = learned(np.array([tokens + [words.pad_token_id] * 3]), words)[0]
    assert not padded[-3:].any() and padded[:-3].tolist() == learned(np.array([tokens]), words)[0].tolist()


def test_a_saved_tokenizer_opens_anywhere(words, tmp_path):
    words.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.apply_chat_template(CHAT, tokenize=False) == words.apply_chat_template(CHAT, tokenize=False)
    assert opened("ans 3 <|end|>")["input_ids"] == words("ans 3 <|end|>")["input_ids"]
    assert (opened.eos_token_id, opened.pad_token_id) == (words.eos_token_id, words.pad_token_id)


def test_the_same_texts_make_the_same_tokenizer(words):
    again = tokenizers.build(contents(3000), vocab_tokens=700, max_context=256)
    assert again.get_vocab() == words.get_vocab()
