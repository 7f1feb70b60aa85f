"""Checkpoints: complete or absent, exact, and plain folders to everybody else."""

import json
import os

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from noisyrl import checkpoint
from noisyrl.models.base import LanguageModel
from noisyrl.spec import InputError
from tests.frame import batch_for, built, loop_for, made_up_rollout


class NoTokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def trained(algo="ppo", updates=2, critic_only=False):
    loop = loop_for(built("algo", f"algo={algo}"), dtype=torch.float32)
    batch = batch_for(loop, made_up_rollout(dtype=torch.float32))
    for _ in range(updates):
        loop._update(batch, loop.algo.credit(batch), torch.arange(16), {}, critic_only=critic_only)
    loop.progress.position, loop.progress.tokens = updates, 77
    return loop, batch


def save(loop, folder, step=1, keep_last=1):
    lm = LanguageModel(loop.collector.agent.policy.model, NoTokenizer(), {})
    return checkpoint.save(loop, lm, folder, step=step, keep_last=keep_last)


@pytest.mark.parametrize(("algo", "critic_only"), [("ppo", False), ("ppo", True), ("grpo", False)])
def test_training_goes_on_as_if_never_stopped(algo, critic_only, tmp_path):
    """After critic warm-up the policy has no optimizer state yet: that too must come back as it was."""
    loop, batch = trained(algo, critic_only=critic_only)
    path = save(loop, tmp_path)
    other = loop_for(built("algo", f"algo={algo}"), dtype=torch.float32)
    checkpoint.restore(other, path)
    assert other.progress == loop.progress
    for one in (loop, other):
        one._update(batch, one.algo.credit(batch), torch.arange(16), {}, critic_only=False)
    for (name, a), b in zip(loop.collector.agent.named_parameters(), other.collector.agent.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_plain_transformers_opens_the_policy(tmp_path):
    loop, _ = trained()
    path = save(loop, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path)
    own = loop.collector.agent.policy.model
    tokens = torch.arange(1, 9)[None]
    assert torch.equal(model(tokens).logits, own(tokens).logits)
    assert checkpoint.weights_hash(model) == checkpoint.weights_hash(own)


def test_only_the_newest_are_kept(tmp_path):
    loop, _ = trained()
    for step in (1, 2, 3):
        save(loop, tmp_path, step=step, keep_last=2)
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["step_000002", "step_000003"]
    assert sorted(os.listdir(tmp_path)) == ["step_000002", "step_000003"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_write_that_fails_leaves_what_was_there(error, tmp_path, monkeypatch):
    loop, _ = trained()
    save(loop, tmp_path, step=1)
    before = checkpoint.checksums(tmp_path / "step_000001")
    monkeypatch.setattr(checkpoint, "save_file", lambda *a: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match="No space"):
        save(loop, tmp_path, step=2)
    assert os.listdir(tmp_path) == ["step_000001"] and checkpoint.checksums(tmp_path / "step_000001") == before


def test_a_torn_folder_is_no_checkpoint(tmp_path):
    loop, _ = trained()
    path = save(loop, tmp_path, step=1)
    (tmp_path / ".writing-step_000002").mkdir()
    (tmp_path / "step_000003").mkdir()
    assert checkpoint.saved(tmp_path) == [path]
    save(loop, tmp_path, step=2, keep_last=2)
    assert (tmp_path / "step_000002/model.safetensors").is_file()
    (tmp_path / ".writing-step_000004").mkdir()
    checkpoint.prune(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["step_000002", "step_000003"]  # the second is nothing of ours


@pytest.mark.parametrize("name", ["model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json"])
def test_damage_is_named_with_the_remedy(name, tmp_path):
    loop, _ = trained()
    path = save(loop, tmp_path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name} is not what was written; delete that folder"):
        checkpoint.restore(loop, path)
    (path / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing"):
        checkpoint.restore(loop, path)


def test_nothing_is_pickled(tmp_path):
    loop, _ = trained()
    path = save(loop, tmp_path)
    suffixes = {file.suffix for file in path.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}
    assert json.loads((path / "trainer/state.json").read_text())["progress"]["tokens"] == 77


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = save(trained("ppo")[0], tmp_path)
    with pytest.raises(InputError, match="is of another model"):
        checkpoint.restore(trained("grpo")[0], path)
