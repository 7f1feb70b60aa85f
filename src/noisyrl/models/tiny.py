"""`model=tiny` and `model=small`: a Qwen3 made from nothing, and warm-started on the testbed's demonstrations.

One checkpoint serves the three tasks of the testbed, alone or mixed (`curriculum`). It is made on first use, in a few
minutes on one core, and kept in a cache under the hash of all that determines it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import sys
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from noisyrl import rng
from noisyrl.models import cache, tokenizer, warm_start
from noisyrl.models.base import LanguageModel, ModelSpec
from noisyrl.models.warm_start import WarmStart
from noisyrl.spec import Count, InputError, Natural, Positive, spec
from noisyrl.tasks.base import DemonstratedTask, Task
from noisyrl.tasks.mix import curriculum

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TITLE = "warm start (once, then cached)"
_TOKENIZER_CONVERSATIONS = 5000  # enough to meet every word of the testbed many times


@spec
class FromScratch(ModelSpec):
    """A small Qwen3 with tied embeddings and a tokenizer of its own."""

    hidden: Count = 128
    """Width of the residual stream."""
    layers: Count = 3
    """Transformer blocks."""
    intermediate: Count = 256
    """Width of the feed-forward layer."""
    heads: Count = 4
    """Query heads; a multiple of `kv_heads`."""
    kv_heads: Count = 2
    """Key and value heads."""
    head_dim: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    """Width of a head."""
    max_context_tokens: Count = 256
    """Prompt and response tokens that fit together."""
    vocab_tokens: Annotated[int, Field(ge=260)] = 700
    """Most tokens in the vocabulary: 256 bytes, 4 special tokens, and the words met in the demonstrations."""
    init_std: Positive = 0.06
    """Standard deviation of the initial weights."""
    seed: Natural = 0
    """Of the initial weights."""
    warm_start: WarmStart = WarmStart()
    """How the demonstrations are learned."""
    cache_dir: str | None = None
    """Where finished models are kept; null = $NOISYRL_CACHE, or else .cache/noisyrl in the working directory."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise InputError(f"model: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")

    def check(self, task: Task) -> None:
        folder = self._folder(task)
        existing = next(path for path in [folder, *folder.parents] if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"model: cannot write to {existing}; set model.cache_dir or NOISYRL_CACHE to a folder")

    def load(self, task: Task) -> LanguageModel:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = cache.entry(self._folder(task), partial(self._build, curriculum(task)))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        origin = {"made": "from nothing, warm-started on demonstrations", "cache_key": folder.name}
        return LanguageModel(model, AutoTokenizer.from_pretrained(folder), origin)

    def _folder(self, task: Task) -> Path:
        root = self.cache_dir or os.environ.get("NOISYRL_CACHE") or ".cache/noisyrl"
        return Path(root).absolute() / f"warm-start-{self._key(curriculum(task))[:20]}"

    def _key(self, lessons: DemonstratedTask) -> str:
        """Hash of all that determines the weights: fields, the code that reads them, versions of the libraries."""
        import tokenizers
        import torch
        import transformers

        read_by = [rng, tokenizer, warm_start, sys.modules[__name__], *_modules(lessons)]
        recipe = {
            "model": asdict(self) | {"cache_dir": None},
            "lessons": [f"{type(lessons).__module__}.{type(lessons).__qualname__}", asdict(lessons)],
            "code": sorted({_code(module) for module in read_by}),
            "libraries": [_minor(library.__version__) for library in (torch, transformers, tokenizers)],
        }
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def _build(self, lessons: DemonstratedTask, folder: Path) -> None:
        from tqdm import tqdm

        read = islice(lessons.demonstrations(), _TOKENIZER_CONVERSATIONS)
        words = tokenizer.build(
            (message["content"] for messages in read for message in messages),
            vocab_tokens=self.vocab_tokens,
            max_context=self.max_context_tokens,
        )
        model = self._untrained(words)
        seconds = 1 if sys.stderr.isatty() else 20  # between two states of the bar; a log file needs few
        # Only the process that builds comes here, so there is one bar however many wait.
        with tqdm(total=self.warm_start.steps, desc=_TITLE, file=sys.stderr, mininterval=seconds) as bar:
            warm_start.fit(model, words, lessons.demonstrations(), self.warm_start, bar.update)
        model.save_pretrained(folder)
        words.save_pretrained(folder)

    def _untrained(self, words: Any) -> PreTrainedModel:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(
            vocab_size=len(words),
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_context_tokens,
            initializer_range=self.init_std,
            tie_word_embeddings=True,
            pad_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
            bos_token_id=None,
        )
        # The constructor draws from the global generator: it is seeded for its sake, and put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.hash64("weights", self.seed))
            return Qwen3ForCausalLM(config)


def _modules(part: Any) -> list[ModuleType]:
    """The modules that define a spec: those of its class, its bases and the specs in its fields."""
    found = [sys.modules[base.__module__] for base in type(part).__mro__ if is_dataclass(base)]
    for field in fields(part):
        if is_dataclass(value := getattr(part, field.name)):
            found += _modules(value)
    return found


def _code(module: ModuleType) -> str:
    """The module's code without comments and docstrings, so that a better word in one costs no warm start."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.dump(tree)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
