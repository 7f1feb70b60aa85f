"""CPU time of the two samplers side by side: python -m tests.rollout.bench (one thread, about two minutes)."""

from __future__ import annotations

import random
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from noisyrl.models.base import LanguageModel
from noisyrl.rollout.fast import FastSampler
from noisyrl.rollout.hf import GenerateSampler
from noisyrl.types import Prompt
from tests.rollout.conftest import Toy, build_tokenizer


class Talk(Toy):
    """Prompts of 14 to 24 tokens; `replies` user replies of 4 tokens."""

    replies = 0

    def prompts(self, split):
        draw = random.Random(0)
        texts = ["".join(draw.choices("abcdef 0123", k=draw.randint(10, 20))) for _ in range(64)]
        return [Prompt(({"role": "user", "content": x},), "", "toy", f"{i}", "toy") for i, x in enumerate(texts)]

    def reply(self, prompt, turns):
        return "u" if len(turns) // 2 < self.replies else None


def model(tokenizer, boost: float) -> LanguageModel:
    """525k parameters, near-uniform next tokens; `boost` is added to the end-of-turn token's logit."""
    shape = dict(vocab_size=638, hidden_size=128, num_hidden_layers=3, intermediate_size=256, head_dim=32)
    shape |= dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=512)
    torch.manual_seed(0)
    built = Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
    built.generation_config.eos_token_id = [tokenizer.eos_token_id]

    def likelier(module, inputs, logits):
        logits[..., tokenizer.eos_token_id] += boost

    built.lm_head.register_forward_hook(likelier)
    return LanguageModel(built, tokenizer, {})


def tokens_per_second(sampler, lm, task, prompts) -> float:
    """Policy tokens per CPU second, the best of three."""
    rates = []
    for step in range(4):
        start = time.process_time()
        rollout = sampler(lm, task, prompts, seed=0, step=step)
        rates.append(int(rollout.mask_BT.sum()) / (time.process_time() - start))
    return max(rates[1:])


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer("testbed")
    print(f"{'':28} {'rows':>5} {'fast tok/s':>11} {'hf tok/s':>9} {'ratio':>6}")
    kinds = [("56 tokens, no end", -50.0, 0), ("ends after ~25", 3.2, 0), ("dialogue, 4 turns of ~8", 4.4, 3)]
    for label, boost, replies in kinds:
        lm, task = model(tokenizer, boost), Talk()
        Talk.replies = replies
        for rows in (16, 64, 128, 256, 512):
            prompts = task.prompts("train")[: rows // 8]
            samplers = (FastSampler(samples=8, max_tokens=56), GenerateSampler(samples=8, max_tokens=56))
            fast, hf = (tokens_per_second(sampler, lm, task, prompts) for sampler in samplers)
            print(f"{label:28} {rows:5} {fast:11.0f} {hf:9.0f} {fast / hf:6.2f}", flush=True)


if __name__ == "__main__":
    main()
