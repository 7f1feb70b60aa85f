import inspect
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from pydantic import ValidationError

from noisyrl.models.tiny import FromScratch
from noisyrl.models.warm_start import WarmStart, learning_rate
from noisyrl.spec import InputError
from noisyrl.tasks.base import Task
from noisyrl.tasks.dialogue import Bookings
from noisyrl.tasks.math import Chains
from noisyrl.tasks.mix import Mix, curriculum
from noisyrl.tasks.science import Facts
from noisyrl.types import Grade

MINI = FromScratch(hidden=16, layers=1, intermediate=16, heads=2, kv_heads=1, head_dim=8, warm_start=WarmStart(steps=6))


@dataclass(frozen=True)
class Undemonstrated(Task):
    splits = ("train",)

    def prompts(self, split):
        return []

    def grade(self, prompt, turns):
        return Grade(0.0)


def weights(lm):
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_warm_start_is_bit_for_bit_repeatable_and_leaves_global_state_alone(tmp_path):
    torch.manual_seed(1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first = replace(MINI, cache_dir=str(tmp_path / "a")).load(Mix())
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = replace(MINI, cache_dir=str(tmp_path / "b")).load(Mix())
    assert same(weights(first), weights(second))
    other = replace(MINI, cache_dir=str(tmp_path / "a"), seed=1).load(Mix())
    assert not same(weights(first), weights(other))


LOAD = """
import sys
from noisyrl.models.tiny import FromScratch
from noisyrl.models.warm_start import WarmStart
from noisyrl.tasks.mix import Mix
sizes = dict(hidden=16, layers=1, intermediate=16, heads=2, kv_heads=1, head_dim=8)
lm = FromScratch(**sizes, warm_start=WarmStart(steps=60), cache_dir=sys.argv[1]).load(Mix())
print([float(p.detach().double().sum()) for p in lm.model.parameters()])
"""


def test_two_processes_build_once_and_agree(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", LOAD, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(arguments, env=env | {"PYTHONHASHSEED": str(i)}, **pipes) for i in (1, 2)]
    (out_1, err_1), (out_2, err_2) = (run.communicate(timeout=120) for run in runs)
    assert out_1 == out_2 and out_1.startswith("["), err_1 + err_2
    assert ("60/60" in err_1) != ("60/60" in err_2)  # one bar: built once
    assert len(list(tmp_path.glob("warm-start-*/model.safetensors"))) == 1


def test_a_loaded_model_is_ready_to_use(tmp_path):
    lm = replace(MINI, cache_dir=str(tmp_path)).load(Chains())
    assert not lm.model.training and lm.model.dtype == torch.float32 and lm.max_context == 256
    assert lm.model.config.eos_token_id == lm.tokenizer.eos_token_id != lm.tokenizer.pad_token_id
    assert lm.origin["cache_key"] in {path.name for path in tmp_path.iterdir()}
    assert lm.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<|user|>x"


def test_the_warm_start_learns_what_the_teacher_says(tmp_path):
    longer = FromScratch(
        hidden=32, layers=1, intermediate=32, heads=2, kv_heads=1, head_dim=16, cache_dir=str(tmp_path),
        warm_start=WarmStart(steps=80, rising_steps=10, learning_rate=1e-2),
    )  # fmt: skip
    lm = longer.load(Mix())
    shown = lm.tokenizer("<|user|>hi , table : city rome<|assistant|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said, user = lm.model(shown).logits[0, -1].softmax(-1), lm.model(shown).logits[0, 0].softmax(-1)
    ids = dict(zip(("ask", "call", "hi"), lm.tokenizer.convert_tokens_to_ids(["ask", "call", "hi"]), strict=True))
    assert said[ids["ask"]] + said[ids["call"]] > 0.4  # of some 600 tokens
    assert user[ids["hi"]] < 0.05  # what users say is not learned


def test_all_tasks_of_the_testbed_share_one_model_whatever_the_sizes_of_their_splits():
    shared = {
        MINI._folder(task)
        for task in [Mix(), Chains(), Facts(), Bookings(), Undemonstrated(), Chains(train_items=5, heldout_items=7)]
    }
    assert len(shared) == 1
    assert curriculum(Chains(max_operand=3)).math.max_operand == 3


@pytest.mark.parametrize(
    "change", [{"hidden": 32}, {"seed": 1}, {"warm_start": WarmStart(steps=7)}, {"vocab_tokens": 600}]
)
def test_whatever_determines_the_weights_is_in_the_key(change):
    assert replace(MINI, **change)._folder(Mix()).name != MINI._folder(Mix()).name


def test_another_lesson_or_another_code_is_another_model(monkeypatch):
    plain = MINI._folder(Mix())
    assert MINI._folder(Chains(slip_rate=0.03)) != plain
    assert MINI._folder(Mix(math_weight=2.0)) != plain
    source = inspect.getsource
    monkeypatch.setattr("inspect.getsource", lambda module: source(module) + "\n# a comment\n")
    assert MINI._folder(Mix()) == plain
    for edited in ("noisyrl.tasks.embedded", "noisyrl.tasks.math", "noisyrl.models.warm_start", "noisyrl.rng"):
        monkeypatch.setattr(
            "inspect.getsource", lambda module, edited=edited: source(module) + "\nx = 1" * (module.__name__ == edited)
        )
        assert MINI._folder(Mix()) != plain, edited


def test_the_cache_is_where_it_is_asked_to_be(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOISYRL_CACHE", raising=False)
    assert MINI._folder(Mix()).parent == tmp_path / ".cache" / "noisyrl"
    monkeypatch.setenv("NOISYRL_CACHE", str(tmp_path / "env"))
    assert MINI._folder(Mix()).parent == tmp_path / "env"
    assert replace(MINI, cache_dir=str(tmp_path / "field"))._folder(Mix()).parent == tmp_path / "field"


def test_a_cache_that_cannot_be_written_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="NOISYRL_CACHE"):
        replace(MINI, cache_dir=str(tmp_path / "file" / "cache")).check(Mix())
    replace(MINI, cache_dir=str(tmp_path / "new" / "cache")).check(Mix())
    assert not (tmp_path / "new").exists()  # a look, not a write


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValidationError, match="multiple of kv_heads"):
        FromScratch(heads=3, kv_heads=2)


def test_the_learning_rate_rises_and_falls():
    settings = WarmStart(steps=300, rising_steps=100, learning_rate=2.0, final_frac=0.1)
    assert learning_rate(0, settings) == pytest.approx(0.02)
    assert learning_rate(99, settings) == pytest.approx(2.0)
    assert learning_rate(200, settings) == pytest.approx(1.1)
    assert learning_rate(300, settings) == pytest.approx(0.2)
