"""The planner: counts against transformers and well-known figures, bad input, predicted beside measured."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from noisyrl import trunk
from noisyrl.launch import build, resolve
from noisyrl.planning.activations import backbone_bytes, loss_bytes, saved_bytes
from noisyrl.planning.forecast import Plan
from noisyrl.planning.measured import measurement
from noisyrl.planning.memory import Layout, memory_lines, networks, totals
from noisyrl.planning.page import page_from_config
from noisyrl.planning.rates import Assumptions, Device, Rates
from noisyrl.planning.shape import Shape, shape_of
from noisyrl.planning.workload import Workload
from noisyrl.spec import InputError

ROOT = Path(__file__).parents[1]
LARGE = ("model=qwen3_8b", "trainer=large", "plan.device=h100", "plan.prompt_tokens=300", "rollout.max_tokens=1024")
TINY = Shape(
    hidden_size=32,
    num_hidden_layers=3,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=64,
    tie_word_embeddings=True,
)


def composed(*overrides):
    """The config as `python src/plan.py` sees it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("plan", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def parts(*overrides):
    """(plan, experiment) of a config."""
    config = resolve(composed("name=plan", *overrides))
    return build(config.pop("plan")), build(config)


@cache
def lines_of(*overrides):
    """Bytes of each line, by name, of a plan that measures nothing."""
    plan, e = parts(*LARGE, *overrides)
    shape, _ = shape_of(e.model, plan.shapes, plan.shape, 0)
    rows = -(-e.trainer.prompts // plan.gpus) * e.rollout.samples
    step = work(
        rows=rows,
        world_rows=e.trainer.prompts * e.rollout.samples,
        samples=e.rollout.samples,
        batch_rows=e.rollout.batch_rows,
        micro_rows=e.trainer.micro_rows,
        prompt_tokens=np.array([300]),
        response_tokens=np.array([1024]),
    )
    layout = Layout(processes=plan.gpus, sharded=plan.gpus > 1 and plan.sharding == "full", gpu=True)
    return {line.name: line.bytes for line in memory_lines(e, shape, step, layout, networks(e, shape, layout))}


def work(**fields):
    given = {
        "rows": 8,
        "world_rows": 8,
        "samples": 4,
        "batch_rows": 8,
        "micro_rows": 4,
        "updates": 1,
        "epochs": 1,
        "prompt_tokens": np.array([10]),
        "response_tokens": np.array([2, 4]),
        "policy_frac": 1.0,
        "answers": 4,
        "sources": (),
    }
    return Workload(**given | fields)


@pytest.mark.parametrize(
    ("hub", "published"),
    [("Qwen/Qwen3-1.7B", 1.72e9), ("Qwen/Qwen3-8B", 8.19e9), ("meta-llama/Llama-3.1-70B", 70.55e9)],
)
def test_parameters_are_those_of_transformers_and_as_published(hub, published):
    plan, _ = parts()
    shape = Shape(**plan.shapes[hub])
    with torch.device("meta"):
        counted = sum(p.numel() for p in shape.untrained().parameters())
    assert shape.parameters == counted
    assert shape.parameters == pytest.approx(published, rel=2e-3)


def test_mixed_precision_adam_takes_sixteen_bytes_per_parameter_divided_among_shards():
    states = [f"policy: {part}" for part in ("weights", "gradients", "Adam's two moments")]
    whole = lines_of("algo=grpo", "model.dtype=float32")
    eighth = lines_of("algo=grpo", "plan.gpus=8")
    copies = lines_of("algo=grpo", "plan.gpus=8", "plan.sharding=none", "model.dtype=float32")
    assert sum(whole[name] for name in states) == pytest.approx(16 * 8.19e9, rel=1e-3)
    # bf16 weights too: FSDP keeps what it trains in float32.
    assert sum(eighth[name] for name in states) == pytest.approx(2 * 8.19e9, rel=1e-3)
    assert sum(copies[name] for name in states) == pytest.approx(16 * 8.19e9, rel=1e-3)
    assert copies["gradient buckets of replicas"] == copies["policy: gradients"]


def test_a_critic_of_its_own_is_a_second_backbone():
    own, shared = lines_of("algo=ppo"), lines_of("algo=ppo", "algo.critic.backbone=shared")
    backbone, head = 8.19074e9 - 151936 * 4096, 4096 + 1
    assert own["critic: weights"] == pytest.approx(2 * (backbone + head), rel=1e-4)
    assert shared["critic: weights"] == 2 * head


def test_backbone_bytes_are_what_a_real_forward_pass_keeps():
    counted = backbone_bytes(TINY, 2, 16, dtype=torch.float32, autocast=False)
    backbone, tokens_BS = TINY.untrained().get_decoder(), torch.zeros(2, 16, dtype=torch.long)
    found = saved_bytes(lambda: backbone(input_ids=tokens_BS, use_cache=False), backbone.parameters())
    # Fake kernels share a little less memory between what they keep.
    assert found <= counted.ends + 3 * counted.per_layer <= 1.1 * found
    assert counted.weight_copies == 0


def test_the_shorter_forward_pass_keeps_less_and_by_the_token():
    backbone, g = TINY.untrained().get_decoder().eval(), torch.Generator().manual_seed(0)
    tokens_BS, size_B = torch.randint(1, 64, (4, 16), generator=g), torch.tensor([16, 16, 16, 9])
    tokens_BS[1, :5], tokens_BS[2:, 0] = tokens_BS[0, :5], tokens_BS[2:, 0] + torch.tensor([0, 1])
    _, number_BS = trunk.hidden_states(backbone, tokens_BS, size_B)
    distinct = int(number_BS.max()) + 1
    found = saved_bytes(lambda: trunk.hidden_states(backbone, tokens_BS, size_B), backbone.parameters())
    counted = backbone_bytes(TINY, 4, 16, dtype=torch.float32, autocast=False, distinct=distinct)
    assert distinct < 57 and counted.ends + 3 * counted.per_layer == pytest.approx(found, rel=0.01)
    whole = backbone_bytes(TINY, 4, 16, dtype=torch.float32, autocast=False)
    assert counted.per_layer < 0.9 * whole.per_layer


def test_prompts_and_answers_are_counted_once_in_a_micro_batch():
    step = work(rows=64, samples=8, answers=8, response_tokens=np.array([20, 20]))
    assert step.distinct_tokens(64) == 64 * 20 + 8 * 10
    assert 32 * 20 + 4 * 10 < step.distinct_tokens(32) <= 32 * 20 + 8 * 10
    assert step.distinct_tokens(1) == 20 + 10
    assert replace(step, answers=2).distinct_tokens(64) == 16 * 20 + 8 * 10


def test_autocast_copies_weights_and_halves_products():
    full = backbone_bytes(TINY, 2, 16, dtype=torch.float32, autocast=False)
    mixed = backbone_bytes(TINY, 2, 16, dtype=torch.float32, autocast=True)
    matrices = 32 * (2 * 32 + 2 * 16) + 3 * 32 * 64  # query, output, key, value; gate, up, down
    assert mixed.weight_copies == 2 * 3 * matrices
    assert full.per_layer / 2 < mixed.per_layer < full.per_layer
    longer = backbone_bytes(TINY, 4, 16, dtype=torch.float32, autocast=True)
    assert longer.per_layer == pytest.approx(2 * mixed.per_layer, rel=0.05)  # copies are not counted with tokens


def test_quantiles_cost_memory_and_a_method_without_critic_none():
    quantile, scalar, none = (loss_bytes(parts(f"algo={algo}")[1].algo, TINY) for algo in ("dvpo", "ppo", "grpo"))
    assert quantile.kept > 4 * 3 * 200 > scalar.kept  # at least 3 heads of 200 quantiles in float32
    assert quantile.saved > scalar.saved > none.saved
    assert none.head_parameters == 0
    assert scalar.head_parameters == 32 + 1


def test_less_memory_where_the_page_says_so():
    base = lines_of("algo=dvpo")
    assert lines_of("algo=dvpo", "trainer.micro_rows=2")["update: losses"] == base["update: losses"] / 2
    kept = base["update: activations of the policy"]
    assert (
        lines_of("algo=dvpo", "trainer.activation_checkpointing=false")["update: activations of the policy"] > 5 * kept
    )
    fewer = lines_of("algo=dvpo", "rollout.batch_rows=64")
    assert fewer["sampler: keys and values"] == base["sampler: keys and values"] / 8


def test_keys_and_values_of_the_sampler():
    # 2 x 36 layers x 8 heads x 128 x 2 bytes for each token; room begins at 300 + 128 and doubles to 1712.
    assert lines_of("algo=grpo")["sampler: keys and values"] == 512 * 1712 * 2 * 36 * 8 * 128 * 2


def test_the_peak_is_the_largest_phase_and_the_lines_add_up():
    _, experiment = parts("algo=dvpo")
    layout = Layout(base=1e6)
    lines = memory_lines(experiment, TINY, work(), layout, networks(experiment, TINY, layout))
    by_phase = totals(lines)
    assert by_phase["update"] == sum(line.bytes for line in lines if "update" in line.phases)
    assert by_phase["update"] > by_phase["optimizer"] > 1e6
    names = [line.name for line in lines]
    assert len(names) == len(set(names))


def test_rows_leave_the_batch_as_their_responses_end():
    assert work().decoded(8).tolist() == [8, 8, 4, 4]  # half say 2 tokens, half say 4
    assert work(batch_rows=3).chunks == [3, 3, 2]
    assert work().policy_tokens == 8 * 3


def test_micro_batches_are_sorted_by_length():
    (rows, longest), (_, shortest) = work().micro_batches
    assert rows == 4
    assert longest > shortest
    assert work().padded_tokens >= work().row_lengths.sum()


def test_rates_by_hand():
    device = Device(memory_gb=80, tflops_16=100, tflops_32=10, bandwidth_gbs=1000, link_gbs=400)
    assumed = Assumptions(matrix_frac=0.5, bandwidth_frac=0.5, gpus_per_node=8, network_gbs=10)
    one = Rates(device, assumed, Layout())
    assert one.matrix(5e13, 2) == pytest.approx(1.0)
    assert one.matrix(5e13, 4) == pytest.approx(10.0)
    assert one.traffic(5e11) == pytest.approx(1.0)
    assert one.link(1e12) == 0
    eight, many = (Rates(device, assumed, Layout(processes=n, sharded=True)) for n in (8, 64))
    assert eight.link(2e11) == pytest.approx(7 / 8)
    assert many.link(4e10) == pytest.approx(63 / 64)  # 8 cards of 10 GB/s, half used


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan.device=tpu"], "plan.device=tpu is not known; choose cpu or one of a100_40"),
        (["plan.gpus=2"], "plan.gpus=2 counts GPUs: set plan.device"),
        (["plan.device=h100", "plan.gpus=32"], "trainer.prompts=16 leaves some of them without work"),
        (["trainer.minibatches=999", "plan.device=h100"], "trainer.minibatches=999 exceeds the 128 rows"),
        (["model=pretrained", "plan.device=h100"], "the model's shape is not known"),
        ([*LARGE, "plan.shape={num_key_value_heads:5}"], "32 query heads cannot share 5 key-value heads"),
        ([*LARGE, "plan.shape={hidden:5}"], "plan.shape: hidden: "),
        ([*LARGE, "plan.shape={hidden_size:0}"], "plan.shape: hidden_size: "),
        (["data=jsonl", "model=qwen3_8b", "plan.device=h100"], "data.path is not set.*or set plan.prompt_tokens=512"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(overrides, message):
    with pytest.raises(InputError, match=message):
        page_from_config(composed(*overrides))


def test_a_shape_is_read_from_config_json_and_changed_by_the_plan(tmp_path):
    _, e = parts("model=pretrained", f"model.path={tmp_path}")
    fields = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"vocab_size": 50, "model_type": "llama"}))
    shape, source = shape_of(e.model, {}, {"num_hidden_layers": 5}, 0)
    assert (shape.num_hidden_layers, shape.head_dim, shape.num_key_value_heads) == (5, 16, 4)
    assert source == f"{tmp_path / 'config.json'}, changed by plan.shape"
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_experts": 8}))
    with pytest.raises(InputError, match="8 experts; plan counts dense transformers only"):
        shape_of(e.model, {}, None, 0)


def test_what_is_assumed_is_called_so():
    page = page_from_config(composed("algo=dvpo", *LARGE, "plan.gpus=8"))
    for said in ("8 x h100", "NOT MEASURED", "ASSUMED: 40% of", "ASSUMED all as long as rollout.max_tokens", "FSDP"):
        assert said in page
    assert "measured   ratio" not in page  # there is no run


def test_predicted_stands_beside_measured(tmp_path):
    folder = tmp_path / "known"
    folder.mkdir()
    timings = [
        {"step": step, "time/rollout_s": 1.0, "time/annotate_s": 0.5, "time/update_s": 2.0, "time/step_s": 3.5}
        for step in (0, 1, 2)
    ]
    (folder / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timings))
    manifest = {"status": "completed", "peak_memory_mb": 700, "peak_gpu_memory_mb": 1000, "seconds": 30.0}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"tokens": 4200, "position": 3}))
    found = measurement(folder)
    assert found.phases["update"] == 2.0
    assert found.tokens_per_second == 400
    page = page_from_config(composed("algo=grpo", *LARGE, f"runs={tmp_path}", "name=known"))
    assert "predicted   measured   ratio" in page
    memory = next(line for line in page.splitlines() if line.startswith("  peak memory, MB"))
    assert memory.split()[4] == "1049"  # 1000 MiB of the GPU, in 10^6 bytes
    assert measurement(tmp_path / "nothing") is None


def test_numbers_are_written_for_programs(tmp_path):
    file = tmp_path / "plan.json"
    page_from_config(composed("algo=grpo", *LARGE, f"plan.json_file={file}"))
    found = json.loads(file.read_text())
    assert found["clock"] == "NOT MEASURED"
    assert found["peak_bytes"] <= sum(found["lines"].values())
    assert found["run_s"] > 500 * found["step_s"]


def test_plan_fields_are_those_of_the_config():
    plan, _ = parts()
    assert isinstance(plan, Plan)
    assert plan.assumed == Assumptions()  # the defaults of the class are those of the file
    assert replace(plan, device="h100", gpus=4).gpus == 4


@pytest.mark.slow
def test_command_predicts_a_run_on_this_cpu():
    command = [sys.executable, "-m", "noisyrl.planning", "--only", "1", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    for row in done.stdout.splitlines()[2:]:
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert abs(float(cells[3]) - 1) <= 0.15, row
        assert abs(float(cells[6]) - 1) <= 0.30, row
