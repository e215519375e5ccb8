"""The example scripts and the README's commands, run as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar_trl.tiny import TINY_POLICY


ROOT = Path(__file__).parent.parent


def run(*command, cwd=ROOT):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_demo_script_trains_evaluates_and_writes_its_results(tmp_path):
    output = run(
        *("accelerate", "launch", "--config_file", "examples/accelerate_configs/single.yaml"),
        *("examples/train_webshop.py", "--output_dir", str(tmp_path), "--max_steps", "2", "--panel_size", "16"),
        *("--per_device_train_batch_size", "16"),
    )
    assert re.search(r"before +\d", output) and re.search(r"after +\d", output)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("before", "after"):
        assert set(metrics[name]) >= {"success", "score", "ci_low", "ci_high", "n"}
        assert metrics[name]["n"] == 16 and metrics[name]["ci_low"] <= metrics[name]["success"]
    assert metrics["seconds"] > 0
    assert (tmp_path / "training.png").stat().st_size > 10_000
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)


def test_a_checkpoint_is_evaluated_with_and_without_skills(tmp_path):
    limits = ("--max_turns", "7", "--max_response_length", "20", "--max_completion_length", "800")
    output = run(
        *(sys.executable, "examples/evaluate.py", "--panel_size", "8", "--skills", "both", *limits),
        *("--json", str(tmp_path / "results.json")),
    )
    assert "without skills" in output
    assert json.loads((tmp_path / "results.json").read_text())["with skills"]["n"] == 8


def test_help_shows_every_option_with_its_text():
    output = " ".join(run(sys.executable, "examples/train_webshop.py", "--help").split())
    for text in ("--sdar_coef", "Weight of the self-distillation loss", "--gate_beta", "--max_turns", "--lora_r"):
        assert text in output


def test_the_configurations_parse():
    for path in (ROOT / "examples" / "accelerate_configs").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["compute_environment"] == "LOCAL_MACHINE"
    from trl import ModelConfig, TrlParser

    sys.path.insert(0, str(ROOT / "examples"))
    from train_webshop import ScriptArguments

    from sdar_trl import SDARConfig

    for path in (ROOT / "examples" / "configs").glob("*.yaml"):
        parser = TrlParser((ScriptArguments, SDARConfig, ModelConfig))
        _, config, _ = parser.parse_args_and_config(["--config", str(path), "--bf16", "false"])
        assert config.num_generations == 8


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
        f'output_dir="{tmp_path}", max_steps=1, per_device_train_batch_size=4, num_generations=4, max_turns=2, '
        'max_response_length=8, report_to="none", save_strategy="no", bf16=False, use_cpu=True'
    )
    for old, new in {"Qwen/Qwen2.5-3B-Instruct": TINY_POLICY, 'output_dir="outputs"': small}.items():
        assert old in code
        code = code.replace(old, new)
    run(sys.executable, "-c", code)
