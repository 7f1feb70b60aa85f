"""Snapshots of the critic on fixed prompts."""

import numpy as np
import torch
from torch.testing import assert_close

from noisyrl import probes
from noisyrl.models.base import LanguageModel
from noisyrl.types import Prompt
from tests.frame import built, loop_for, made_up_rollout


class Words:
    """A tokenizer that knows one prompt per number."""

    chat_template = "{}"

    def apply_chat_template(self, messages, **_):
        return list(range(1, 2 + int(messages[0]["content"])))


def loop_and_lm():
    loop = loop_for(built("algo", "algo=dvpo"))
    return loop, LanguageModel(loop.collector.agent.policy.model, Words(), {})


def test_a_snapshot_is_the_value_before_the_first_response_token(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "prompt_tokens", lambda tokenizer, p: tokenizer.apply_chat_template(p.messages))
    loop, lm = loop_and_lm()
    prompts = [Prompt(({"role": "user", "content": str(i)},), "", "made-up", f"p{i}", "made-up") for i in (3, 0, 2)]
    arrays = probes.snapshot(loop.collector.agent, lm, prompts)
    assert arrays["quantiles"].shape == (3, 3, 200) and arrays["ensemble"].shape == (3, 200)
    assert list(arrays["uid"]) == ["p3", "p0", "p2"]
    # The second prompt alone, followed by some response: its first value is the same.
    rollout = made_up_rollout(prompts=1, samples=1)
    tokens, attention = torch.full((1, 13), 7), torch.ones(1, 13, dtype=torch.bool)
    tokens[0, 3], attention[0, :3] = 1, False
    mask = torch.ones(1, 9, dtype=torch.bool)
    alone = type(rollout)(**{**vars(rollout), "tokens_BL": tokens, "attention_BL": attention, "mask_BT": mask})
    _, value = loop.collector.agent(alone)
    assert_close(torch.from_numpy(arrays["mean"])[1], value.mean_BT[0, 0].detach().float(), atol=1e-6, rtol=0)
    probes.write(tmp_path / "probes/step_000001.npz", arrays)
    with np.load(tmp_path / "probes/step_000001.npz") as stored:  # allow_pickle is off
        assert np.array_equal(stored["quantiles"], arrays["quantiles"])
    assert [path.name for path in (tmp_path / "probes").iterdir()] == ["step_000001.npz"]
