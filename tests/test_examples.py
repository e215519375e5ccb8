"""The example scripts and the README's commands, run as a user runs them."""

import functools
import io
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar_trl.envs import load_world, world_class
from sdar_trl.envs.worlds import WORLDS
from sdar_trl.evaluation import Panel, curve_results, read_records, world_panel
from sdar_trl.methods import METHODS
from sdar_trl.policies import TINY_POLICY, policy_limits


ROOT = Path(__file__).parent.parent


def run(*command, cwd=ROOT):
    """What a command prints. A plain script runs in this process, which has imported what a new one would first."""
    if command[0] == sys.executable and command[1].endswith(".py"):
        return run_here(*command[1:])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run_here(script, *options):
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(sys, "argv", [script, *options])
        patch.chdir(ROOT)
        patch.syspath_prepend(Path(script).parent)
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, stop.code
    return output.getvalue()


def test_the_demo_script_trains_evaluates_and_writes_its_results(tmp_path):
    output = run(
        *("accelerate", "launch", "--config_file", "examples/accelerate_configs/single.yaml"),
        *("examples/train_webshop.py", "--output_dir", str(tmp_path), "--max_steps", "2", "--panel_size", "16"),
        *("--per_device_train_batch_size", "16", "--curve_every", "1", "--curve_size", "4"),
    )
    # when it is known, and beside what came after
    assert len(re.findall(r"before +\d", output)) == 2 and re.search(r"task type +before +after", output)
    assert len(re.findall(r"after +\d", output)) == 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    panel = Panel.load(tmp_path / "panel.json")
    assert panel == world_panel(load_world("webshop"), "test", 16)
    for name in ("before", "after"):
        about, records = read_records(tmp_path / f"panel_{name}.jsonl")
        assert about["panel"] == panel.about() and about["step"] == (0 if name == "before" else 2)
        assert set(metrics[name]) >= {"success", "score", "ci_low", "ci_high", "n"}
        assert metrics[name]["n"] == 16 and metrics[name]["ci_low"] <= metrics[name]["success"]
        assert [record.task_id for record in records] == list(panel.task_ids)
        assert sum(record.success for record in records) / 16 == metrics[name]["success"]
    assert set(curve_results(tmp_path)) == {0, 1, 2} and metrics["curve"]["last_step"]["step"] == 2
    assert "last step" in output and "best step" in output
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["panels"] == {
        "test": panel.about(),
        "curve": world_panel(load_world("webshop"), "validation", 4).about(),
    }
    assert found["world"] == "webshop" and found["finished"] and found["steps"] == 2
    assert metrics["seconds"] > 0
    assert (tmp_path / "training.png").stat().st_size > 10_000
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)


def test_the_search_qa_script_trains_and_tells_each_kind_and_source(tmp_path):
    output = run(
        *(sys.executable, "examples/train_search_qa.py", "--output_dir", str(tmp_path), "--max_steps", "1"),
        *("--panel_size", "16", "--per_device_train_batch_size", "16"),
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("before", "after"):
        assert set(metrics[name]["by_task_type"]) == {"attribute", "comparison", "direct", "multi_hop"}
        assert {"f1", "searches", "exact_match/cities"} <= set(metrics[name]["metrics"])
    assert re.search(
        r"task type +before +after\nattribute +\d.*\ncomparison +\d.*\ndirect +\d.*\nmulti_hop +\d", output
    )


def test_skill_prompting_trains_nothing_and_leaves_its_panel(tmp_path):
    run(
        *(sys.executable, "examples/train_webshop.py", "--method", "skill_prompt", "--output_dir", str(tmp_path)),
        *("--panel_size", "4"),
    )
    written = ["metrics.json", "panel.json", "panel_before.jsonl", "run.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    assert len(read_records(tmp_path / "panel_before.jsonl")[1]) == 4


def test_a_checkpoint_is_evaluated_with_and_without_skills(tmp_path):
    output = run(
        *(sys.executable, "examples/evaluate.py", "--panel_size", "8", "--skills", "both", "--tries", "2"),
        *("--json", str(tmp_path / "results.json"), "--records", str(tmp_path / "records")),
    )
    assert "without skills" in output and "pass@2" in output and re.search(r"task type +tasks +success", output)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["with skills"]["n"] == 8 and results["run"]["versions"]["trl"]
    panel = world_panel(load_world("webshop"), "test", 8)
    records = results["records"]["with skills"]
    assert [record["task_id"] for record in records] == [task for task in panel.task_ids for _ in range(2)]
    about, read = read_records(tmp_path / "records" / "with_skills.jsonl")
    assert [record.to_dict() for record in read] == records
    assert about["panel"] == results["run"]["panel"] == panel.about() and about["skills"] == "with"
    assert max(record["turns"] for record in records) <= policy_limits("tiny")["max_turns"]


def test_a_checkpoint_is_evaluated_on_a_window_and_on_a_shop_of_files(tmp_path):
    run(sys.executable, "-m", "sdar_trl.envs.webshop.samples", str(tmp_path), "--products", "100")
    output = run(
        *(sys.executable, "examples/evaluate.py", "--env", "webshop", "--data_dir", str(tmp_path)),
        *("--panel_size", "2", "--max_turns", "3", "--history", "window", "--history_window", "1"),
    )
    assert re.search(r"without skills +\d", output) and "Nouns of titles, for the score, by: " in output


def test_a_world_has_its_own_arguments_and_an_unknown_one_is_told():
    command = [sys.executable, "examples/evaluate.py", "--env"]
    output = " ".join(run(*command, "webshop", "--help").split())
    assert "--price_seed" in output and "Folder of WebShop's official files" in output and "--history_window" in output
    with pytest.raises(
        AssertionError, match="error: A world must be one of webshop, alfworld, search_qa, got 'webshob'."
    ):
        run(*command, "webshob")


def test_help_shows_every_option_with_its_text():
    output = " ".join(run(sys.executable, "examples/train_webshop.py", "--help").split())
    for text in ("--sdar_coef", "Weight of the self-distillation loss", "--gate_beta", "--max_turns", "--lora_r"):
        assert text in output
    assert "--data_dir" in output and "--human_goals" in output


@pytest.fixture
def parse_as(monkeypatch):
    """Arguments of a world's script, as it reads them."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    from common import parse

    return lambda name, *args: parse(world_class(name), import_module(f"train_{name}").DEMO, list(args))


@pytest.fixture
def parse(parse_as):
    """Arguments of the WebShop script, as it reads them."""
    return functools.partial(parse_as, "webshop")


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ((), "outputs/demo"),
        (("--method", "grpo"), "outputs/demo_grpo"),
        (("--history", "window"), "outputs/demo_window"),
        (("--method", "rlsd", "--history", "window"), "outputs/demo_rlsd_window"),
        (("--method", "grpo", "--output_dir", "outputs/demo"), "outputs/demo"),
    ],
)
def test_another_method_or_history_leaves_the_demos_results_alone(parse, options, folder):
    _, _, config, _ = parse(*options)
    assert config.output_dir == folder


def test_limits_are_those_given_else_the_policys_else_the_worlds(parse, tmp_path):
    def limits(*options):
        _, _, config, _ = parse(*options)
        return {name: getattr(config, name) for name in policy_limits("tiny")}

    tiny, world = policy_limits("tiny"), load_world("webshop").limits
    assert limits() == limits("--model_name_or_path", TINY_POLICY) == tiny
    assert limits("--model_name_or_path", "smollm2") == world
    assert limits("--max_turns", "3") == {**tiny, "max_turns": 3}
    (tmp_path / "config.yaml").write_text("model_name_or_path: smollm2\nmax_turns: 4")
    assert limits("--config", str(tmp_path / "config.yaml")) == {**world, "max_turns": 4}


def test_the_worlds_arguments_reach_dataset_and_environment(parse):
    _, world, _, _ = parse("--reward", "success")
    assert world.environment_factory().reward == "success"


def test_the_configurations_parse(parse_as):
    for path in (ROOT / "examples" / "accelerate_configs").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["compute_environment"] == "LOCAL_MACHINE"
    for path in (ROOT / "examples" / "configs").glob("*.yaml"):
        world = next(name for name in WORLDS if path.stem.startswith(name))
        _, _, config, _ = parse_as(world, "--config", str(path), "--bf16", "false")
        assert config.num_generations == 8
        assert config.output_dir == f"outputs/{path.stem}"


def test_two_processes_without_a_gpu_are_two(tmp_path):
    run(
        *("accelerate", "launch", "--config_file", "examples/accelerate_configs/ddp_cpu.yaml"),
        *(
            "examples/train_webshop.py",
            "--use_cpu",
            "--max_steps",
            "1",
            "--per_device_train_batch_size",
            "2",
            "--num_generations",
            "2",
        ),
        *("--max_turns", "2", "--panel_size", "4", "--output_dir", str(tmp_path)),
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["processes"] == 2


def test_the_readmes_python_example_trains(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    small = (
        f'output_dir="{tmp_path}", max_steps=1, per_device_train_batch_size=4, num_generations=4, report_to="none", '
        'save_strategy="no", bf16=False, use_cpu=True'
    )
    limits = "max_turns=2, max_response_length=8"
    replaced = {"Qwen/Qwen2.5-3B-Instruct": TINY_POLICY, 'output_dir="outputs"': small, "**world.limits": limits}
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("world", WORLDS)
def test_a_method_has_its_own_values_in_every_script(world, monkeypatch):
    """A demo may have a coefficient of its own for SDAR; GRPO must not get it."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    common, demo = import_module("common"), import_module(f"train_{world}").DEMO
    for method, values in METHODS.items():
        _, _, found, _ = common.parse(world_class(world), demo, ["--method", method])
        own = values if method != "sdar" else {**values, **{name: demo[name] for name in values if name in demo}}
        assert {name: getattr(found, name) for name in own} == own
    _, _, found, _ = common.parse(world_class(world), demo, ["--method", "grpo_opsd", "--sdar_coef", "0.3"])
    assert found.sdar_coef == 0.3
