"""SGD dialogues as benchmarks: one per domain and suite, several figures per dialogue, the same in any order."""

from __future__ import annotations

import json

import pytest
import yaml
from lm_eval.tasks import TaskManager

from analysis.collect import Evaluated, scores
from noisyrl.evaluation import regrade, repeats, store
from noisyrl.evaluation.benchmarks import LM_TASKS, find
from noisyrl.evaluation.harness import Evaluation
from noisyrl.evaluation.run_folder import score_run
from noisyrl.launch import build, resolve
from noisyrl.rollout.fast import FastSampler
from noisyrl.spec import InputError
from noisyrl.tasks.decontaminate import decontaminate
from noisyrl.tasks.hub_train import HubTraining
from noisyrl.tasks.sgd import data
from noisyrl.tasks.sgd.task import Sgd
from tests import short_run
from tests.evaluation.stage import Scripted, Toy, random_model
from tests.frame import composed
from tests.tasks import made_up_hub
from tests.tasks.sgd_files import DOMAINS, perfect, say, write

NAMES = [f"sgd5_{domain}{suite}" for suite in ("", "_ood") for domain in DOMAINS]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return str(write(tmp_path_factory.mktemp("sgd") / "sgd", count=3))


@pytest.fixture(scope="module")
def task(root) -> Sgd:
    return Sgd(path=root)


def never_asks(prompt, turns):
    """As the perfect agent, but what it would ask for it makes up: x."""
    said = json.loads(perfect(prompt, turns))
    return say("call", intent="Find", slots={"city": "x", "kind": "x"}) if said["act"] == "ask" else json.dumps(said)


def evaluated(lm, task, occasion, script, **options):
    Evaluation(keep_text=True, **options).run(lm, task, Scripted(script=script), **occasion)
    (folder,) = (path for path in occasion["out_dir"].iterdir() if path.name != store.SUPERSEDED)
    return Evaluated(folder, tuple(store.read_aggregate(folder)))


def test_one_benchmark_for_each_domain_and_suite(task):
    found = find(task, ("test", "ood"))
    assert [benchmark.name for benchmark in found] == NAMES
    assert [benchmark.suite for benchmark in found] == ["ID"] * 5 + ["OOD"] * 5
    assert all(b.interactive and b.version == "1" and b.graders == ("sgd5-goal@v1",) for b in found)


def test_the_perfect_agent_scores_one_everywhere(lm, task, occasion):
    found = evaluated(lm, task, occasion, perfect)
    rows = {(row["benchmark"], row["metric"]): row for row in found.rows}
    assert {name for name, _ in rows} == set(NAMES)
    for name in NAMES:
        values = {metric: row["value"] for (benchmark, metric), row in rows.items() if benchmark == name}
        assert values == {
            "acc": 1, "davg": 1, "tcr": 1, "acr": 1, "gcr": 1, "format_error_rate": 0, "no_answer": 0, "truncated": 0
        }  # fmt: skip
        # Dialogues with nothing to ask are not among those of acr.
        assert rows[name, "acr"]["n_questions"] <= rows[name, "gcr"]["n_questions"]
    assert sum(rows[name, "acr"]["n_questions"] for name in NAMES) < sum(rows[n, "gcr"]["n_questions"] for n in NAMES)


def test_an_agent_that_never_asks(lm, task, occasion):
    """By the definitions, from the user's side of each dialogue; D-AVG is the mean of the three means."""
    found = evaluated(lm, task, occasion, never_asks)
    rows = {(row["benchmark"], row["metric"]): row["value"] for row in found.rows}
    for benchmark in find(task, ("test", "ood")):
        played = [Scripted(script=never_asks).play(task, prompt) for prompt in benchmark.prompts]
        each = [task.measure(prompt, turns) for prompt, turns in zip(benchmark.prompts, played, strict=True)]
        means = {}
        for metric in ("tcr", "acr", "gcr"):
            values = [one[metric] for one in each if one[metric] is not None]
            means[metric] = sum(values) / len(values)
            assert rows[benchmark.name, metric] == pytest.approx(means[metric])
        assert means["acr"] == 0 and means["gcr"] < 1
        assert rows[benchmark.name, "davg"] == pytest.approx(sum(means.values()) / 3)
        for metric in ("davg", "tcr", "acr", "gcr", "acc"):
            by_dialogue = scores(found, benchmark.name, metric)
            assert sum(by_dialogue.values()) / len(by_dialogue) == pytest.approx(rows[benchmark.name, metric], abs=1e-6)
    assert 0 < rows["sgd5_life", "tcr"] < 1


def test_several_dialogues_per_goal():
    rows = [
        {"qid": qid, "repeat": i, "score": gcr, "extracted": None, "no_answer": True, "truncated": False,
         "tcr": tcr, "acr": acr, "gcr": gcr, "format_error_rate": 0.0}
        for qid, answers in {"a": [(1.0, 0.5, 1.0), (0.5, 0.0, 0.0)], "b": [(0.0, None, 0.0)] * 2}.items()
        for i, (tcr, acr, gcr) in enumerate(answers)
    ]  # fmt: skip
    assert repeats.per_question("acr", rows) == {"a": 0.25}
    assert repeats.per_question("tcr", rows) == {"a": 0.75, "b": 0.0}
    # Means .375, .25 and .25 have the mean .2917.
    assert sum(repeats.per_question("davg", rows).values()) / 2 == pytest.approx((0.375 + 0.25 + 0.25) / 3)
    nothing = [row | {"acr": None} for row in rows]
    assert repeats.per_question("davg", nothing) == {} and "davg" in repeats.metrics(2, measured=True)
    plain = [{key: row[key] for key in repeats.NEEDED} for row in rows]
    with pytest.raises(InputError, match="no metric 'tcr'"):
        repeats.per_question("tcr", plain)


def test_other_benchmarks_have_no_such_columns(lm, occasion):
    found = evaluated(lm, Toy(), occasion, lambda prompt, turns: "yes")
    assert not set(store.read_samples(found.folder).column_names) & set(repeats.MEASURES)
    assert {row["metric"] for row in found.rows} == {"acc", "no_answer", "truncated"}


def test_order_and_batch_size_change_nothing(task):
    """Sampled from a random model with bytes for tokens, which never speaks JSON."""
    lm = talker()
    prompts = task.prompts("test")[:3]
    sampler = FastSampler(samples=2, max_tokens=100, temperature=1.0, batch_rows=64)
    whole = sampler(lm, task, prompts, seed=0, step=0)
    turned = sampler(lm, task, prompts[::-1], seed=0, step=0)
    single = [FastSampler(samples=2, max_tokens=100, batch_rows=2)(lm, task, [p], seed=0, step=0) for p in prompts]
    said = {
        (p.uid, i): list(t)
        for p, i, t in zip(whole.prompts, whole.sample_B.tolist(), whole.turns, strict=True)
    }  # fmt: skip
    assert any(len(turns) > 2 for turns in said.values())
    for other in (turned, *single):
        for p, i, turns in zip(other.prompts, other.sample_B.tolist(), other.turns, strict=True):
            assert said[p.uid, i] == list(turns)
            assert task.measure(p, turns)["format_error_rate"] == 1


def test_regrading_changes_nothing_and_notices_other_rules(lm, root, occasion, tmp_path, monkeypatch):
    run_dir = tmp_path / "runs/x"
    occasion |= {"out_dir": run_dir / "eval"}
    evaluated(lm, Sgd(path=root), occasion, never_asks, limit=3)
    (run_dir / "config.yaml").write_text(
        yaml.safe_dump({"data": {"_target_": "noisyrl.tasks.sgd.task.Sgd", "path": root}})
    )
    (run_dir / "manifest.json").write_text(json.dumps({"status": "completed"}))
    (same,) = regrade.regrade_run(run_dir)
    assert same.before == same.after and same.changed == 0
    half = {"tcr": 0.5, "acr": None, "gcr": 0.0, "format_error_rate": 0.0}
    monkeypatch.setattr(Sgd, "measure", lambda self, prompt, turns: half)
    with pytest.raises(InputError, match="raise the version"):
        regrade.regrade_run(run_dir)


def test_lm_evals_own_command_line_finds_them(root, task):
    fields = {name: {"path": root} for name in NAMES}
    manager = TaskManager(include_path=str(LM_TASKS), include_defaults=False, metadata={"fields": fields})
    loaded = manager.load(["sgd5"])["tasks"]
    for benchmark in find(task, ("test", "ood")):
        found = loaded[benchmark.name]
        assert [doc["uid"] for doc in found.dataset["test"]] == [prompt.uid for prompt in benchmark.prompts]
        assert set(found.aggregation()) == {*repeats.MEASURES, "acc", "no_answer", "ungraded"}
        with pytest.raises(InputError, match="played turn by turn"):
            found.build_all_requests(chat_template=lambda messages: "", apply_chat_template=True)
    doc = loaded["sgd5_life"].dataset["test"][0]
    turns = Scripted(script=perfect).play(task, task.prompts("test")[0])
    assert loaded["sgd5_life"].process_results(doc, [json.dumps(turns)])["gcr"] == 1


def talker():
    """The byte model, with room for a schema and an end in sight."""
    lm = random_model()
    lm.model.config.max_position_embeddings = 2048
    lm.model.generation_config.eos_token_id = [lm.tokenizer.eos_token_id, *range(4, 256, 8)]  # short turns
    return lm


def words(root, tmp_path, *more):
    return [
        "data=sgd5", f"data.path={root}", "data.heldout_items=1", "data.heldout_frac=0", "model=pretrained",
        f"model.path={tmp_path}/model", "rollout.samples=2", "rollout.max_tokens=80", "trainer.prompts=2",
        "trainer.steps=2", "trainer.checkpoint_every=0", "eval=testbed", "eval.at_start=false",
        f"runs={tmp_path}/runs", "name=x", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        ["algo=grpo", "noise=flip0.3"],
        pytest.param(["algo=dvpo", "noise=reward_model"], marks=pytest.mark.slow),
        pytest.param(["algo=ppo", "noise=gaussian0.3", "data.reward=average"], marks=pytest.mark.slow),
        pytest.param(["algo=grpo", "noise=labels"], marks=pytest.mark.slow),
        pytest.param(["algo=grpo", "noise=majority"], marks=pytest.mark.slow),
        pytest.param(["algo=ppo", "noise=per_turn"], marks=pytest.mark.slow),
    ],
)
def test_a_run_trains_and_is_scored(root, tmp_path, more):
    lm = talker()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    config = resolve(composed(*words(root, tmp_path, *more)))
    groups = ("algo", "correction", "data", "eval", "logger", "model", "noise", "rollout", "trainer")
    final = build(config).run(config, {group: "made-up" for group in groups})
    assert {f"eval/{name}/{metric}" for name in NAMES for metric in ("acc", "tcr", "gcr")} <= set(final)
    assert all(final[f"eval/{name}/format_error_rate"] == 1 for name in NAMES)
    run = tmp_path / "runs/x"
    assert json.loads((run / "manifest.json").read_text())["status"] == "completed"
    # What was said is not JSON, so nothing was achieved, and every reply was an apology.
    (folder,) = (run / "eval").iterdir()
    replies = {reply for row in store.read_texts(folder) for reply in row["turns"][1::2]}
    assert replies == {"Sorry, I did not understand that."}


@pytest.mark.parametrize("more", [["noise=flip0.3"], ["noise=none", "correction=backward0.3"]])
def test_parts_of_a_goal_are_no_verdict(root, tmp_path, more):
    config = resolve(composed(*words(root, tmp_path, "data.reward=average", *more)))
    with pytest.raises(InputError, match="needs rewards 0 or 1.* 0 to 1 and what is between"):
        build(config).run(config, {})
    assert not list(tmp_path.glob("runs/*"))


def test_missing_files_are_refused_before_a_folder_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = resolve(composed(*words("data/sgd", tmp_path, "noise=none")))
    with pytest.raises(InputError, match=r"data/sgd/train/\S+ does not exist. Fetch it: git clone .* data/sgd "):
        build(config).run(config, {})
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Where a user stands: a working directory with the files in data/sgd, and nothing else fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data/sgd", count=3)
    return tmp_path


def test_any_run_is_asked_what_a_run_trained_on_it_is_asked(desk, occasion):
    def script(prompt, turns):
        return "yes" if prompt.task == "toy" else never_asks(prompt, turns)

    def rows(out, task, **options):
        found = evaluated(talker(), task, occasion | {"out_dir": desk / out}, script, **options)
        return [{key: value for key, value in row.items() if key != "eval_id"} for row in found.rows]

    def of_sgd(found):
        return [row for row in found if row["benchmark"] in NAMES]

    own = rows("own", Sgd(path="data/sgd"))
    other = rows("other", Toy(), splits=("test",), hub=("sgd5",))
    assert of_sgd(other) == own and {row["benchmark"] for row in other} == {"toy", *NAMES}
    assert {row["metric"] for row in own} >= {"tcr", "acr", "gcr", "davg"}


def test_such_an_evaluation_is_graded_again(desk, occasion):
    found = evaluated(talker(), Toy(), occasion, never_asks, splits=(), hub=("sgd5",), limit=2)
    again = regrade.regrade(found.folder, Toy())
    assert again.after == again.before and again.changed == 0


def test_what_was_trained_on_decides_its_suite(desk):
    """No training set that is decontaminated was compared with it, nor need it be."""
    made_up_hub.write(desk / "data")
    report = decontaminate("light_r1", "data")
    assert "sgd5" not in report["tests"]
    evaluation = Evaluation(hub=("math500", "sgd5"))
    suites = {each.name: each.suite for each in evaluation.benchmarks(HubTraining(name="light_r1"))}
    assert suites == {"hub_math500": "ID"} | dict.fromkeys(NAMES, "OOD")
    suites = {each.name: each.suite for each in evaluation.benchmarks(Sgd())}
    assert suites == {"hub_math500": "OOD"} | {name: "OOD" if name.endswith("_ood") else "ID" for name in NAMES}


@pytest.mark.parametrize("splits", [("test", "ood"), ()])
def test_a_run_trained_on_it_is_asked_its_own_dialogues_once(root, splits):
    """It may have held out others than the benchmark does, and been trained on those."""
    task = Sgd(path=root, heldout_frac=0.3, world=1)
    found = Evaluation(splits=splits, hub=("sgd5", "sgd5")).benchmarks(task)
    assert [each.name for each in found] == NAMES and all(each.source is task for each in found)


def test_its_files_are_read_once(desk, monkeypatch):
    read = []
    original = data.goals
    monkeypatch.setattr(data, "goals", lambda root, folder: read.append(folder) or original(root, folder))
    evaluation = Evaluation(splits=("test",), hub=("sgd5",))
    assert evaluation.benchmarks(Toy()) == evaluation.benchmarks(Toy())
    assert sorted(read) == ["dev", "test", "train"]


def test_without_room_or_files_it_is_refused(lm, desk, occasion):
    with pytest.raises(InputError, match="question sgd5/.* has .* tokens.*context of 512"):
        evaluated(lm, Toy(), occasion, perfect, hub=("sgd5",))
    (desk / "data/sgd/dev/dialogues_001.json").unlink()
    with pytest.raises(InputError, match=r"no dialogues_\*.json in data/sgd/dev/. Fetch it: git clone .* data/sgd "):
        Evaluation(hub=("sgd5",)).benchmarks(Toy())
    (desk / "data/sgd").rename(desk / "aside")
    config = resolve(composed("data=math", "+eval.hub=[sgd5]", f"runs={desk}/runs", "name=x"))
    with pytest.raises(InputError, match=r"data/sgd/train/schema.json does not exist. Fetch it: git clone"):
        build(config).run(config, {})
    assert not list(desk.glob("runs/*"))


def test_a_run_on_something_else_is_scored_during_and_after(desk, monkeypatch):
    short_run.graded_by_chance(monkeypatch)
    lm = talker()
    lm.model.save_pretrained(desk / "model")
    lm.tokenizer.save_pretrained(desk / "model")
    run = short_run.start(desk / "runs", desk / "model", "noise=none", "+eval.hub=[sgd5]", "eval.at_start=false")
    scores = json.loads((run / "manifest.json").read_text())["scores"]
    assert {f"eval/{name}/{metric}" for name in NAMES for metric in ("acc", "tcr", "gcr")} <= set(scores)
    later = score_run(run, Evaluation(splits=(), hub=("sgd5",), limit=1, max_tokens=20))
    assert {name.partition("/")[0] for name in later} == set(NAMES) and later["sgd5_life/format_error_rate"] == 1
