"""Several real processes on CPU: the same losses and weights as one, and runs that are killed and go on."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sdar_trl.checkpointing import checkpoint_to_resume


HERE = Path(__file__).parent
WORLD = {"single": 1, "ddp": 2, "zero2": 2, "zero3": 2, "fsdp2": 2}


@pytest.fixture(scope="module")
def launch():
    """Plays jobs in processes of their own; see worker.py."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "worker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as server:

        def launch(backend, folder, jobs, killed_by=None):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            count, where = WORLD[backend], {"backend": backend, "folder": str(folder), "port": port}
            print(json.dumps({"processes": count, "jobs": jobs, **where}), file=server.stdin, flush=True)
            codes = next(json.loads(line[7:]) for line in server.stdout if line.startswith("codes: "))
            # the others may see that one is gone (an error of theirs) before they are killed too
            expected = codes == [0] * count if killed_by is None else -killed_by in codes and 0 not in codes
            assert expected, (codes, (folder / "log.txt").read_text()[-9000:])

        yield launch
        server.kill()


def result(folder, name, rank=0):
    return json.loads((folder / f"{name}_{rank}.json").read_text())


def untimed(entry):
    """What was logged, without a process's own times."""
    return {name: value for name, value in entry.items() if name != "step_time" and not name.startswith("time/")}


# Agreement

# four rows a step: two tasks, two episodes each
SCRIPTED = {"play": "scripted", "num_generations": 2, "max_steps": 3, "sdar_coef": 0.5, "beta": 0.04}

# rows by turn: one process has episodes of six turns, the other of one
BY_TURN = {"history": "window", "lengths": [6, 1], "max_turns": 6, "max_completion_length": 60}

ROW_MEANS = {**BY_TURN, "loss_type": "grpo", "per_device_train_batch_size": 1}


@pytest.fixture(scope="module")
def agreed(launch, random_model_folder, other_model_folder, tmp_path_factory):
    """The same scripted episodes, with full weights, LoRA and another teacher, on every backend that was asked for."""
    folders = {}

    def get(backend):
        if backend not in folders:
            folders[backend] = tmp_path_factory.mktemp(backend)
            rows = 4 // WORLD[backend]
            common = {**SCRIPTED, "model": random_model_folder, "per_device_train_batch_size": rows}
            jobs = [{**common, "name": "full"}, {**common, "name": "lora", "lora": True}]
            jobs += [{**common, **BY_TURN, "name": "by_turn"}]
            other = {"teacher_weights": other_model_folder}
            jobs += [{**common, **ROW_MEANS, **other, "gradient_accumulation_steps": rows, "name": "row_means"}]
            # DeepSpeed is set up once a process
            for together in [[job] for job in jobs] if backend.startswith("zero") else [jobs]:
                launch(backend, folders[backend], together)
        return folders[backend]

    return get


@pytest.mark.parametrize("name", ["full", "lora", "by_turn", "row_means"])
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3", "fsdp2"])
def test_losses_metrics_and_weights_agree_with_one_process(backend, name, agreed):
    one, several = agreed("single"), agreed(backend)
    left = result(one, name)
    right = [result(several, name, rank) for rank in range(2)]
    assert left["world_size"] == 1 and [r["world_size"] for r in right] == [2, 2]
    played = [[ids for r in right for ids in r["generations"][i][1]] for i in range(3)]
    assert played == [generation for _, generation in left["generations"]]
    compared = ("loss", "grad_norm", "kl", "reward", "sdar/loss", "sdar/gap_mean", "sdar/gap_std", "sdar/gate_mean")
    for ours, theirs in zip(left["history"], right[0]["history"], strict=True):
        # of several steps of accumulation, TRL logs the plain mean, whatever their tokens
        keys = ("loss", "grad_norm", "reward") if name == "row_means" else compared
        for key in (*keys, "sdar/context_tokens", "env/return", "env/success"):
            assert np.isclose(float(ours[key]), float(theirs[key]), rtol=1e-3, atol=1e-5), key
    assert right[0]["forwards"] == right[1]["forwards"]
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    ours, theirs = load_file(one / name / file), load_file(several / name / file)
    theirs.pop("lm_head.weight", None)  # FSDP and ZeRO write tied weights twice
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4, msg=key)


def test_zero3_really_shards_and_what_it_saves_is_plain_transformers(agreed):
    folder = agreed("zero3")
    model = AutoModelForCausalLM.from_pretrained(folder / "full")
    assert result(folder, "full")["local_parameters"] < sum(p.numel() for p in model.parameters())
    reference = load_file(agreed("single") / "full" / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name in reference:
            torch.testing.assert_close(parameter.detach(), reference[name], rtol=1e-3, atol=1e-4, msg=name)


# Episodes of any length, and one process's environments raising


@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_environments_that_raise_on_one_process_only_leave_the_others_playing(
    backend, launch, random_model_folder, tmp_path
):
    job = {
        "model": random_model_folder,
        "play": "sampled",
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "sdar_coef": 0.5,
        "retriever": "ucb",
    }
    launch(backend, tmp_path, [{**job, "name": "raises", "fails_on": 1, "save_episodes_every": 3}])
    left, right = (result(tmp_path, "raises", rank) for rank in range(2))
    assert len(left["history"]) == len(right["history"]) == 3
    for ours, theirs in zip(left["history"], right["history"], strict=True):  # what is logged is of all processes
        assert untimed(ours) == untimed(theirs)
    assert "env_error" not in left["stop_reasons"]
    assert any(entry["env/stop/env_error"] > 0 for entry in left["history"])
    assert left["generate_calls"] == right["generate_calls"]
    [file] = (tmp_path / "raises" / "episodes").iterdir()  # one, of both
    written = [json.loads(line) for line in file.open()]
    assert [line["step"] for line in written] == [3] * 4
    assert {line["stop_reason"] == "env_error" for line in written} == {True, False}


@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_a_panel_is_the_same_on_any_number_of_processes(backend, launch, random_model_folder, tmp_path):
    job = {
        "model": random_model_folder,
        "play": "sampled",
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "learning_rate": 0.0,
        "panel": {"tries": 3, "batch_size": 4, "temperature": 1.0},
    }
    found = {}
    for name in ("single", backend):
        launch(name, tmp_path, [{**job, "name": name}])
        found[name] = result(tmp_path, name)["panel"]
    assert result(tmp_path, backend, 1)["panel"] == found[backend] == found["single"]
    assert len({record["actions"] for record in found["single"]}) > 8


FAULTY = {
    "play": "sampled",
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "sdar_coef": 0.5,
    "lengths": [3],
    "learning_rate": 1e-3,
}


def test_faults_in_processes_of_environments_train_two_processes_as_plain_errors_do(
    launch, random_model_folder, tmp_path
):
    """The last job stops one of them while a checkpoint is written: the one before is the last that is whole."""
    faults = ["dies", None, "is killed", "hangs", "writes garbage", "cannot be sent", "exits", "answers with nonsense"]
    job = {**FAULTY, "model": random_model_folder, "save_strategy": "steps", "save_steps": 1}
    jobs = [
        {**job, "name": "faulty", "faults": faults},
        {**job, "name": "plain", "faults": [fault and "raises" for fault in faults]},
        {**job, "name": "stopped", "terminate_at": 2},
    ]
    launch("ddp", tmp_path, jobs, killed_by=signal.SIGTERM)
    for rank in range(2):
        faulty, plain = result(tmp_path, "faulty", rank), result(tmp_path, "plain", rank)
        assert faulty["stop_reasons"] == plain["stop_reasons"] and faulty["panel"] == plain["panel"]
        assert faulty["generations"] == plain["generations"]
        for ours, theirs in zip(faulty["history"], plain["history"], strict=True):
            assert untimed(ours) == untimed(theirs)
        assert any(0 < entry["env/stop/env_error"] < 1 and entry["grad_norm"] > 0 for entry in faulty["history"])
        assert 0 < sum(record["stop_reason"] == "env_error" for record in faulty["panel"]) < 8
    left, right = (load_file(tmp_path / name / "checkpoint-2" / "model.safetensors") for name in ("faulty", "plain"))
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert (tmp_path / "stopped" / "checkpoint-2" / "optimizer.pt").exists()
    last = checkpoint_to_resume(True, str(tmp_path / "stopped"))
    assert last == str(tmp_path / "stopped" / "checkpoint-1")


# Stopping and going on

RESUME = {
    "play": "sampled",
    "num_generations": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_steps": 14,
    "sdar_coef": 0.5,
    "sdar_coef_schedule": "cosine",
    "gate_beta_schedule": "linear",
    "retriever": "ucb",
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
}


@pytest.mark.parametrize("backend", ["single", "ddp"])
def test_a_run_killed_again_and_again_is_the_run_that_was_never_stopped(
    backend, launch, random_model_folder, tmp_path
):
    """Killed within a generation batch, at the end of the first epoch, and within a batch of the second."""
    # an epoch is 4 tasks: one generation batch has 2 tasks per process, and lasts for 4 steps
    job = {**RESUME, "model": random_model_folder, "tasks": 4 * WORLD[backend]}
    launch(backend, tmp_path, [{**job, "name": "whole"}])
    for kill_at in (3, 8, 10):
        killed = {**job, "name": "killed", "kill_at": kill_at, "resume": kill_at > 3}
        launch(backend, tmp_path, [killed], killed_by=signal.SIGKILL)
        assert (tmp_path / "killed" / f"checkpoint-{kill_at}" / "complete.json").exists()
        assert not (tmp_path / "killed_0.json").exists()
    launch(backend, tmp_path, [{**job, "name": "killed", "resume": True}])
    for rank in range(WORLD[backend]):
        whole, killed = result(tmp_path, "whole", rank), result(tmp_path, "killed", rank)
        assert [step for step, _ in whole["generations"]] == [0, 4, 8, 12]
        assert killed["generations"] == whole["generations"][3:]  # step 10 still trains on the batch of step 8
    ends = [tmp_path / name / "checkpoint-14" for name in ("whole", "killed")]
    histories = [json.loads((end / "trainer_state.json").read_text())["log_history"] for end in ends]
    for key in ("loss", "sdar/coef", "sdar/gate_beta", "sdar/loss", "epoch"):
        left, right = ([entry[key] for entry in history] for history in histories)
        assert left == right and len(left) == 14, key
    left, right = (load_file(end / "model.safetensors") for end in ends)
    assert all(torch.equal(left[key], right[key]) for key in left)
    left, right = (torch.load(end / "resume_0.pt")["retriever"] for end in ends)
    assert left == right
    kept = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert kept == ["checkpoint-13", "checkpoint-14"]
