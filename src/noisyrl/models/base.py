"""A model source: how a causal language model and its tokenizer come to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noisyrl.spec import spec
from noisyrl.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM with its tokenizer (which carries the chat template) and, for the manifest, where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: Mapping[str, Any]

    @property
    def max_context(self) -> int:
        """Prompt and response tokens that fit together."""
        return int(self.model.config.max_position_embeddings)


@spec
class ModelSpec(ABC):
    """What `model=` configures."""

    @abstractmethod
    def check(self, task: Task) -> None:
        """Cheap look before anything heavy starts. InputError: what is missing, and what to set."""

    @abstractmethod
    def load(self, task: Task) -> LanguageModel:
        """The model in float32 or as the spec says, on CPU, in evaluation mode. InputError: it cannot be had."""
