"""The tokenizer of the embedded models: byte-level BPE learned from demonstrations, and its chat template.

Any text survives the round trip; digits are single tokens, so that sums look alike wherever they stand.

    <|user|>start 7 , add 4 . result ?<|assistant|>7 + 4 = 1 ; ans 1<|end|>

An assistant's turn ends with <|end|>, the end-of-sequence token; a user's turn ends where the next turn begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}{{- '<|user|>' + message.content -}}"
    "{%- elif message.role == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}{{- message.content + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- raise_exception('this template knows the roles user and assistant, not ' + message.role) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
# One piece per digit and per word, each with the space before it: merges never cross them.
_PIECES = Regex(r" ?\d| ?[^\s\d]+|\s+")


def build(texts: Iterable[str], *, vocab_tokens: int, max_context: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_tokens` tokens (256 bytes and 4 special tokens included), learned from texts."""
    tokenizer = Tokenizer(models.BPE())
    splitter = pre_tokenizers.Split(_PIECES, behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [splitter, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_tokens,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_context,
        clean_up_tokenization_spaces=False,
    )


def render(messages: Sequence[Mapping[str, str]]) -> str:
    """What CHAT_TEMPLATE makes of a conversation, without the cost of a template engine."""
    return "".join(
        f"{USER}{message['content']}" if message["role"] == "user" else f"{ASSISTANT}{message['content']}{END}"
        for message in messages
    )
