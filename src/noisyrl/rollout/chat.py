"""Messages to tokens and back, through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from noisyrl.models.base import LanguageModel
from noisyrl.spec import InputError
from noisyrl.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for the assistant's turn when the template is asked what comes after one.
_SENTINEL = "assistantTurnGoesHere"
# Replies of a scripted user repeat by the thousand; a learned user's do not, so the memory is bounded.
_REPLIES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, bool], list[int]]] = WeakKeyDictionary()
_MOST_REPLIES = 50_000


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, thinking: bool = False) -> str:
    """The conversation as text, up to where the assistant is to speak. InputError: no template, or it refuses.

    thinking: handed to the template as `enable_thinking`, which most templates do not read.
    """
    from jinja2.exceptions import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no chat template: use an "
            "instruct model, or save a chat_template.jinja beside the tokenizer's files (tokenizer.chat_template = ...)"
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, enable_thinking=thinking
            )
        )
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise InputError(f"the chat template refuses a conversation with the roles {roles}: {error}") from error


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, thinking: bool = False) -> list[int]:
    """What the model is shown before it answers: the prompt's messages and the opening of the assistant's turn."""
    # The template writes the special tokens itself, the one at the beginning included.
    return _encode(tokenizer, render(tokenizer, [dict(message) for message in prompt.messages], thinking=thinking))


def all_prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, thinking: bool = False
) -> list[list[int]]:
    """`prompt_tokens` of many prompts, in less time."""
    texts = [render(tokenizer, [dict(message) for message in prompt.messages], thinking=thinking) for prompt in prompts]
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"])


def end_tokens(lm: LanguageModel) -> frozenset[int]:
    """The tokens that end an assistant's turn: those of the generation config and the tokenizer's own.

    InputError: neither names any, so that no turn would ever end.
    """
    of_model = lm.model.generation_config.eos_token_id if lm.model.generation_config is not None else None
    listed = of_model if isinstance(of_model, list) else [of_model]
    ends = frozenset(int(token) for token in [*listed, lm.tokenizer.eos_token_id] if token is not None)
    if not ends:
        raise InputError(
            "nothing ends a turn (end-of-turn token): set the tokenizer's eos_token or generation_config.eos_token_id"
        )
    return ends


@dataclass(frozen=True)
class Chat:
    """A tokenizer and the tokens that end a turn."""

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    thinking: bool = False

    def reply(self, text: str) -> list[int]:
        """Tokens between an assistant's end-of-turn token and its next turn: the user's message in its wrapping."""
        known = _REPLIES.setdefault(self.tokenizer, {})
        key = (text, self.thinking)
        if key not in known:
            if len(known) >= _MOST_REPLIES:
                known.clear()
            known[key] = self._reply(text)
        return known[key]

    def text(self, tokens: np.ndarray) -> str:
        """A turn [t] as text, special tokens and outer white space dropped."""
        return str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).strip()

    def _reply(self, text: str) -> list[int]:
        """Cut what follows the assistant's turn out of a conversation in which it spoke the sentinel."""
        turns = [("user", "Hello"), ("assistant", _SENTINEL), ("user", text)]
        messages = [{"role": role, "content": content} for role, content in turns]
        shown = render(self.tokenizer, messages, thinking=self.thinking)
        tail = shown.split(_SENTINEL, 1)
        if len(tail) != 2:
            raise InputError("the chat template drops or rewrites the assistant's turns: a dialogue needs them")
        tokens = _encode(self.tokenizer, tail[1])
        # The policy has already said the end-of-turn token; some templates put white space before it.
        first = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        if first is not None and not str(self.tokenizer.decode(tokens[:first])).strip():
            return tokens[first + 1 :]
        return tokens


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
