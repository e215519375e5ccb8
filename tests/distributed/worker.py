"""
The processes of distributed runs on CPU, forked from one that has imported everything.

    python worker.py

reads one launch a line from standard input, JSON: `processes`, `backend` ("single", "ddp", "zero2", "zero3" or
"fsdp2"), `folder`, `port`, and `jobs`, runs that share the launch. Each has a name and the options of `run`;
FOLDER/NAME_RANK.json gets what came of it, FOLDER/log.txt what was printed. Answers each launch with a line
`codes: [..]`, the processes' exit codes. As with torchrun, one that dies takes the others with it.
"""

import json
import os
import signal
import sys
from pathlib import Path

import deepspeed  # noqa: F401
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from toys import CountingEnv, FaultyProcessEnv
from transformers import TrainerCallback

from sdar_trl import SDARConfig, SDARTrainer, Skill, SkillLibrary
from sdar_trl.evaluation import evaluate_trainer


SKILLS = SkillLibrary(
    [
        Skill("general", "", "say every number.", always=True),
        Skill("even", "", "even tasks want calm.", task_types=("even",)),
        Skill("odd", "", "odd tasks want courage.", task_types=("odd",)),
    ]
)


def deepspeed_config(stage: int) -> dict:
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
    }


def scripted(ids: list[list[int]], *_) -> tuple[list[list[int]], None]:
    """Responses that depend on what was read alone, so that every backend trains on the same episodes."""
    return [[10 + (sum(row) * (k + 3)) % 900 for k in range(1 + sum(row) % 5)] for row in ids], None


class Killer(TrainerCallback):
    """Dies without a word once a checkpoint is whole."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if torch.distributed.is_initialized():
                torch.distributed.barrier()  # let the others finish writing too
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    backend: str,
    folder: Path,
    name: str,
    model: str,
    *,
    play: str,
    tasks: int = 8,
    lora: bool = False,
    lengths: tuple[int, ...] = (1, 2, 3),
    fails_on: int | None = None,
    faults: list[str] | None = None,
    panel: dict | None = None,
    terminate_at: int | None = None,
    kill_at: int | None = None,
    resume: bool = False,
    **options,
) -> None:
    rank = int(os.environ.get("RANK", 0))
    rows = [
        {
            "prompt": [{"role": "system", "content": "you count."}, {"role": "user", "content": f"task {index}: "}],
            "task_id": f"count/{index}",
            "task_type": "even" if index % 2 == 0 else "odd",
            "length": lengths[index % len(lengths)],
            **({"fault": faults[index % len(faults)]} if faults else {}),
        }
        for index in range(tasks)
    ]
    distributed = {}
    if backend.startswith("zero"):
        distributed["deepspeed"] = deepspeed_config(int(backend[-1]))
    if backend == "fsdp2":
        distributed["fsdp"] = True
        distributed["fsdp_config"] = {
            "version": 2,
            "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"],
            "state_dict_type": "FULL_STATE_DICT",
        }
    if backend in ("zero2", "zero3", "fsdp2"):
        distributed["accelerator_config"] = {"use_configured_state": True}
    args = SDARConfig(
        output_dir=str(folder / name),
        **{
            "max_completion_length": 96,
            "max_response_length": 8,
            "max_turns": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": backend in ("single", "ddp"),
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            **distributed,
            **options,
        },
    )

    class Env(CountingEnv):
        @staticmethod
        def history(first, past, observation, step):
            return f"{first} {past} {step}: {observation}"

        def reset(self, **task):
            fails = {"fails_at": 2} if fails_on == rank else {}
            return super().reset(**{**task, **fails})

    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)  # the same adapter on every process
    trainer = SDARTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        environment_factory=FaultyProcessEnv if faults else Env,
        skills=SKILLS,
        peft_config=adapter if lora else None,
        callbacks=[Killer(kill_at)] if kill_at is not None else None,
    )
    generate_calls, forwards = 0, 0
    score_tokens = trainer._get_per_token_logps_and_entropies

    def forward(*args, **kwargs):
        nonlocal forwards
        forwards += 1
        return score_tokens(*args, **kwargs)

    trainer._get_per_token_logps_and_entropies = forward
    if play == "scripted":
        trainer.rollout.backend.generate = scripted
    else:
        generate = trainer.rollout.backend.generate

        def counted(*given):
            nonlocal generate_calls
            generate_calls += 1
            return generate(*given)

        trainer.rollout.backend.generate = counted
    generations = []
    score = trainer._generate_and_score_completions

    def recorded(inputs):
        output = score(inputs)
        generations.append([trainer.state.global_step, [[t.response_ids for t in e.turns] for e in trainer.episodes]])
        return output

    trainer._generate_and_score_completions = recorded
    if rank == 1 and terminate_at is not None:
        resume_state = trainer._resume_state

        def terminated():  # what is asked for when this process's part of a checkpoint is to be written
            if trainer.state.global_step == terminate_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return resume_state()

        trainer._resume_state = terminated
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_model()
    result = {
        "world_size": trainer.accelerator.num_processes,
        "generations": generations,
        "generate_calls": generate_calls,
        "forwards": forwards,
        "stop_reasons": [episode.stop_reason.value for episode in trainer.episodes],
        "local_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "panel": [r.to_dict() for r in evaluate_trainer(trainer, rows, **panel or {})] if panel or faults else [],
        "history": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    (folder / f"{name}_{rank}.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()


def work(rank: int, launch: dict) -> None:
    """All that one process does."""
    backend, folder, world = launch["backend"], Path(launch["folder"]), launch["processes"]
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    if world > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": launch["port"], "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in {**address, "WORLD_SIZE": world}.items()})
    if backend.startswith("zero"):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if backend in ("zero2", "zero3", "fsdp2"):
        state = PartialState(backend="gloo")
        if backend == "fsdp2":
            state.distributed_type = DistributedType.MULTI_GPU  # what accelerate turns into FSDP; it takes no CPU
    del sys.modules["__main__"].__file__  # so that the processes of environments do not run this too
    for job in launch["jobs"]:
        run(backend, folder, **job)


def fork(rank: int, launch: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work(rank, launch)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(code)  # taken down in the usual order, a process is now and then aborted by one of gloo's threads


def wait(pids: list[int]) -> list[int]:
    """Exit codes, -9 of what was killed."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] != 0:
            for other in set(pids) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


torch.set_num_threads(1)
for line in sys.stdin:
    launch = json.loads(line)
    print("codes:", wait([fork(rank, launch) for rank in range(launch["processes"])]), flush=True)
