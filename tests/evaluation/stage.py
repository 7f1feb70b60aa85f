"""A random two-layer model with a byte tokenizer, and a sampler that says what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from noisyrl.models.base import LanguageModel
from noisyrl.rollout.base import Sampler
from noisyrl.spec import spec
from noisyrl.tasks.base import Task
from noisyrl.types import Grade, Prompt, Rollout

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte and four special ones."""
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def random_model(width: int = 32, *, spread: float = 0.3, dropout: float = 0.0) -> LanguageModel:
    """Weights drawn from a fixed seed, wide enough that no two logits are near ties."""
    tokenizer = byte_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=width // 2, max_position_embeddings=512,
        initializer_range=spread, attention_dropout=dropout, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    return LanguageModel(model.eval(), tokenizer, {})


@spec
class Toy(Task):
    """Three kinds of answers: right, wrong, and one that cannot be graded."""

    count: int = 4

    @property
    def splits(self):
        return ("train", "test", "ood")

    def prompts(self, split):
        messages = ({"role": "user", "content": "say yes"},)
        return [Prompt(messages, "yes", "toy", f"toy/{split}/{i}", "toy") for i in range(self.count)]

    def grade(self, prompt, turns):
        if turns[-1] == "crash":
            return Grade(None, "error")
        return Grade(float(turns[-1] == prompt.answer), extracted=turns[-1] or None)


Script = Callable[[Prompt, Sequence[str]], str]


@spec
class Scripted(Sampler):
    """Says what `script` says, given the prompt and the turns so far."""

    script: Script
    unfinished: tuple[str, ...] = ()

    def __call__(self, lm, task, prompts, *, seed, step):
        turns = [self.play(task, prompt) for prompt in prompts]
        rows, ones = len(turns), torch.ones(len(turns), 5, dtype=torch.bool)
        said = torch.arange(2).repeat(rows, 1) < torch.tensor([[len(each[-1]) % 2 + 1] for each in turns])
        return Rollout(
            prompts=prompts, turns=turns, tokens_BL=torch.zeros(rows, 5, dtype=torch.int64), attention_BL=ones,
            mask_BT=said, logp_BT=torch.zeros(rows, 2), group_B=torch.arange(rows),
            sample_B=torch.zeros(rows, dtype=torch.int64),
            finished_B=torch.tensor([prompt.uid not in self.unfinished for prompt in prompts]),
        )  # fmt: skip

    def play(self, task, prompt):
        turns = [self.script(prompt, [])]
        while (reply := task.reply(prompt, turns)) is not None:
            turns += [reply, self.script(prompt, [*turns, reply])]
        return turns
