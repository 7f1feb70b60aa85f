"""Folders as users have them: whole ones load and speak, broken ones say what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from noisyrl.models.pretrained import Pretrained
from noisyrl.rollout.fast import FastSampler
from noisyrl.rollout.hf import GenerateSampler
from noisyrl.spec import InputError
from noisyrl.tasks.base import Task
from noisyrl.types import Grade, Prompt

MORE_ENDS = range(0, 256, 16)  # an untrained model would seldom say the one end token
CONF = Path(__file__).parents[2] / "conf"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, CHATML, ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]),
    "llama": (LlamaConfig, LlamaForCausalLM, LLAMA3, ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<s>"]),
}

# The Llama-like folder has no padding token on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:the tokenizer has no padding token")


class Dialogue(Task):
    splits = ("train",)

    def prompts(self, split):
        return [Prompt(({"role": "user", "content": x},), "", "t", x, "t") for x in ("hello", "how are you ?")]

    def reply(self, prompt, turns):
        return "go on" if len(turns) == 1 else None

    def grade(self, prompt, turns):
        return Grade(1.0)


TASK = Dialogue()


def tokenizer_of(specials, **options):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=specials[0], **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Family -> a saved folder."""
    folders = {}
    for family, (config, architecture, template, specials) in FAMILIES.items():
        tokenizer = tokenizer_of(specials, **({"bos_token": "<s>"} if family == "llama" else {}))
        tokenizer.chat_template = template
        shape = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8)
        torch.manual_seed(0)
        shape |= dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=family == "qwen3")
        model = architecture(config(**shape))
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *MORE_ENDS]
        folders[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(folders[family])
        tokenizer.save_pretrained(folders[family])
    return folders


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole["qwen3"], tmp_path / "model"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_loads_and_both_samplers_say_the_same(whole, family):
    lm = Pretrained(path=str(whole[family])).load(TASK)
    assert isinstance(lm.model, FAMILIES[family][1]) and not lm.model.training and lm.model.dtype == torch.float32
    assert lm.origin["architecture"] == FAMILIES[family][1].__name__ and json.dumps(dict(lm.origin))
    options = {"samples": 4, "max_tokens": 60}
    prompts = TASK.prompts("train")
    fast, hf = (s(**options)(lm, TASK, prompts, seed=0, step=0) for s in (FastSampler, GenerateSampler))
    assert fast.turns == hf.turns and torch.equal(fast.tokens_BL, hf.tokens_BL)
    torch.testing.assert_close(fast.logp_BT, hf.logp_BT, atol=1e-5, rtol=0)
    assert fast.finished_B.any() and {len(turns) for turns in fast.turns} >= {3}


def test_weights_come_back_as_they_were_saved(whole):
    lm = Pretrained(path=str(whole["qwen3"])).load(TASK)
    torch.manual_seed(0)
    again = Qwen3ForCausalLM(lm.model.config)
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), again.parameters(), strict=True))
    assert Pretrained(path=str(whole["qwen3"]), dtype="bfloat16").load(TASK).model.dtype == torch.bfloat16
    eager = Pretrained(path=str(whole["qwen3"]), attn_implementation="eager").load(TASK)
    assert eager.model.config._attn_implementation == "eager"


def test_sixteen_bit_weights_can_be_sampled(whole):
    lm = Pretrained(path=str(whole["llama"]), dtype="bfloat16").load(TASK)
    rollout = FastSampler(samples=3, max_tokens=30)(lm, TASK, TASK.prompts("train"), seed=0, step=0)
    assert rollout.logp_BT.dtype == torch.float32 and (rollout.logp_BT[rollout.mask_BT] < 0).all()


def drop(name):
    return lambda folder: (folder / name).unlink()


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])


def emptied(folder):
    (folder / "model.safetensors").write_bytes(b"")


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard_lost(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def page_instead_of_json(folder):
    (folder / "tokenizer_config.json").write_text("<html>")
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("config.json"), "no config.json.*hf download Qwen/X --local-dir"),
        (drop("model.safetensors"), "no weights.*hf download Qwen/X"),
        (pickled, "pickled weights only"),
        (cut, "model.safetensors is damaged or cut short.*hf download"),
        (cut_header, "model.safetensors is damaged or cut short"),
        (emptied, "model.safetensors is damaged or cut short"),
        (shard_lost, "model-00002-of-00002.safetensors is missing"),
        (drop("tokenizer.json"), "no tokenizer"),
        (drop("tokenizer_config.json"), "no tokenizer_config.json"),
        (drop("chat_template.jinja"), "no chat template.*chat_template.jinja"),
        (page_instead_of_json, "tokenizer_config.json cannot be read as JSON"),
    ],
)
def test_a_broken_folder_is_refused_before_it_is_loaded(folder, damage, message):
    damage(folder)
    source = Pretrained(path=str(folder), hub="Qwen/X")
    with pytest.raises(InputError, match=message):
        source.check(TASK)
    with pytest.raises(InputError, match=message):
        source.load(TASK)


def test_weights_of_another_model_are_refused(folder):
    """transformers would fill what is missing with random numbers."""
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"], config["layer_types"] = 3, ["full_attention"] * 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="lack 11 tensors of the model"):
        Pretrained(path=str(folder)).load(TASK)


def test_an_unknown_architecture_is_one_clear_error(folder):
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "novel", "architectures": ["Novel"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"model cannot be loaded: \w+: .*novel"):
        Pretrained(path=str(folder)).load(TASK)


def test_a_tokenizer_with_too_many_tokens_is_refused(folder):
    tokenizer = tokenizer_of(["<|im_end|>", *(f"<{i}>" for i in range(9))])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="more tokens than the model"):
        Pretrained(path=str(folder)).load(TASK)


def test_padding_token_is_chosen(folder, whole):
    assert Pretrained(path=str(folder)).load(TASK).tokenizer.pad_token == "<|endoftext|>"
    with pytest.warns(UserWarning, match="no padding token"):
        assert Pretrained(path=str(whole["llama"])).load(TASK).tokenizer.pad_token == "<|eot_id|>"


def test_paths_that_are_no_folder(tmp_path):
    with pytest.raises(InputError, match="set model.path=FOLDER"):
        Pretrained().check(TASK)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        Pretrained(path=str(tmp_path / "file")).check(TASK)
    with pytest.raises(InputError, match="does not exist"):
        Pretrained(path=str(tmp_path / "nothing")).check(TASK)


@pytest.mark.parametrize(("name", "hub"), [("qwen3_1.7b", "Qwen/Qwen3-1.7B"), ("qwen3_8b", "Qwen/Qwen3-8B")])
def test_named_models_say_how_to_get_them(name, hub, tmp_path, monkeypatch):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        source = instantiate(compose(overrides=[f"+model={name}"]).model)
    monkeypatch.chdir(tmp_path)
    assert isinstance(source, Pretrained)
    with pytest.raises(InputError, match=rf"models/.* does not exist.*`hf download {hub} --local-dir models/"):
        source.check(TASK)
