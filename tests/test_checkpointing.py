"""Checkpoints that are whole, and adapters; distributed/ has the runs that are killed."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import time

import bitsandbytes as bnb
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors import SafetensorError
from steps import scored_batch, teacher_prompts_of
from toys import CountingEnv
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from sdar_trl import SDARTrainer
from sdar_trl.policies import TINY_POLICY


SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


# Whole or not


@pytest.fixture
def folder(make_trainer, make_config, tmp_path):
    make_trainer(make_config(**SAVING)).train()
    return tmp_path / "out"


def test_a_checkpoint_that_was_cut_while_being_written_is_not_resumed_from(folder, make_trainer, make_config, caplog):
    (folder / "checkpoint-3" / "complete.json").unlink()
    config = make_config(**{**SAVING, "max_steps": 4})
    with pytest.raises(ValueError, match="checkpoint-3 is no whole checkpoint"):
        make_trainer(config).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    trainer = make_trainer(config)
    trainer.train(resume_from_checkpoint="true")  # as the command line gives it
    assert "checkpoint-3 was cut while it was being written, and is passed over" in caplog.text
    steps = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert steps == [1, 2, 3, 4]  # the first two from checkpoint-2


def test_without_a_whole_checkpoint_there_is_nothing_to_resume(folder, make_trainer, make_config):
    for path in folder.glob("checkpoint-*/complete.json"):
        path.unlink()
    with pytest.raises(ValueError, match="No whole checkpoint in"):
        make_trainer(make_config(**SAVING)).train(resume_from_checkpoint=True)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="No whole checkpoint in"):
        make_trainer(make_config(**SAVING)).train(resume_from_checkpoint=True)


def test_another_number_of_processes_is_an_error_that_names_both(folder, make_trainer, make_config):
    mark = folder / "checkpoint-3" / "complete.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "num_processes": 2}))
    with pytest.raises(ValueError, match="written by 2 processes, and there are 1"):
        make_trainer(make_config(**SAVING)).train(resume_from_checkpoint=True)


def test_older_checkpoints_go_only_once_the_new_one_is_whole(make_trainer, make_config, tmp_path, monkeypatch):
    trainer = make_trainer(make_config(**SAVING, save_total_limit=1))
    save, kept = trainer._resume_state, []

    def state():
        kept.append(sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")))
        return save()

    monkeypatch.setattr(trainer, "_resume_state", state)
    trainer.train()
    assert kept == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


# what is called right before a part of a checkpoint is written, in the order of writing
PARTS = ["_save", "_save_optimizer_and_scheduler", "_save_rng_state", "_resume_state", "_batch_settings"]


@pytest.mark.parametrize(
    ("how", "part"), [*(("full disk", part) for part in PARTS), ("Ctrl-C", PARTS[1]), ("Ctrl-C", PARTS[-1])]
)
def test_whatever_stops_the_writing_of_a_checkpoint_the_last_whole_one_is_resumed_from(
    how, part, make_trainer, make_config, tmp_path, monkeypatch
):
    config = make_config(**SAVING, save_total_limit=1)
    trainer = make_trainer(config)
    write, limits = getattr(trainer, part), resource.getrlimit(resource.RLIMIT_FSIZE)

    def stopped(*args):
        if trainer.state.global_step == 2 and how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        elif trainer.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))  # bytes that a file may have
        return write(*args)

    monkeypatch.setattr(trainer, part, stopped)
    try:
        with pytest.raises((KeyboardInterrupt, OSError, RuntimeError, SafetensorError)):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = tmp_path / "out"
    assert trainer.state.global_step == 2 and (folder / "checkpoint-2").is_dir() and trainer.args.save_total_limit == 1
    with pytest.raises(ValueError, match="checkpoint-2 is no whole checkpoint.*Resume from .*checkpoint-1"):
        make_trainer(config).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    again = make_trainer(config)
    again.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [1, 2, 3]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_checkpoint_that_is_written_again_is_not_whole_in_the_meantime(folder, make_trainer, make_config):
    trainer = make_trainer(make_config(**SAVING))

    def fail(*_):
        raise OSError("No space left on device")

    trainer._save_optimizer_and_scheduler = fail
    with pytest.raises(OSError, match="No space"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    trainer = make_trainer(make_config(**SAVING))
    with pytest.raises(ValueError, match="checkpoint-2 is no whole checkpoint.*Resume from .*checkpoint-3"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))


@pytest.mark.parametrize("event", ["on_substep_end", "on_pre_optimizer_step"])
def test_a_run_that_writes_a_checkpoint_on_sigterm_is_resumed_exactly(event, make_trainer, make_config, tmp_path):
    config = make_config(
        **{"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 4, "enable_jit_checkpoint": True}
    )

    class Terminator(TrainerCallback):
        pass

    def terminate(self, args, state, control, **kwargs):
        if state.global_step == 2:
            manager.kill_wait = 0
            os.kill(os.getpid(), signal.SIGTERM)
            while not manager.is_checkpoint_requested:
                time.sleep(0.01)

    setattr(Terminator, event, terminate)
    whole = make_trainer(config)
    whole.train()
    stopped = make_trainer(config)
    [jit] = [c for c in stopped.callback_handler.callbacks if isinstance(c, JITCheckpointCallback)]
    manager = jit.jit_manager
    stopped.callback_handler.callbacks.insert(0, Terminator())
    stopped.train()
    assert stopped.state.global_step < 4
    again = make_trainer(config)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    for left, right in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)


class Intruder:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_someone_put_in_place_of_a_checkpoints_files_is_never_run(folder, make_trainer, make_config, tmp_path):
    files = sorted(path for path in (folder / "checkpoint-3").iterdir() if path.suffix in (".pt", ".pth", ".bin"))
    assert {"resume_0.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < {path.name for path in files}
    for path in files:
        kept = path.read_bytes()
        torch.save(Intruder(tmp_path / "ran"), path)
        with contextlib.suppress(pickle.UnpicklingError):  # `training_args.bin` is not read
            make_trainer(make_config(**{**SAVING, "max_steps": 4})).train(resume_from_checkpoint=True)
            assert path.name == "training_args.bin"
        path.write_bytes(kept)
    assert not (tmp_path / "ran").exists()


# Adapters


def test_with_lora_the_teacher_is_the_current_adapter_and_the_reference_the_base(make_trainer, make_config):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = make_trainer(
        make_config(beta=0.1), peft_config=adapter, skills=lambda episodes: ["read this."] * len(episodes)
    )
    output = scored_batch(trainer)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    length = output["completion_ids"].size(1)

    def logps(ids, mask):
        logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]
        return logits.log_softmax(-1).gather(-1, output["completion_ids"].unsqueeze(-1)).squeeze(-1)

    prompts = teacher_prompts_of(trainer)
    encoded = torch.tensor(
        [
            trainer.processing_class.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
            for p in prompts
        ]
    )
    trainer.model.eval()
    with torch.no_grad():
        teacher = logps(
            torch.cat([encoded, output["completion_ids"]], 1),
            torch.cat([torch.ones_like(encoded), output["completion_mask"]], 1),
        )
        with trainer.model.disable_adapter():
            base = logps(ids, mask)
    padding = output["completion_mask"] == 0
    for ours, expected in ((output["teacher_per_token_logps"], teacher), (output["ref_per_token_logps"], base)):
        torch.testing.assert_close(ours, expected.masked_fill(padding, 0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base, logps(ids, mask), atol=1e-3)


def test_an_adapter_on_the_output_layer_is_refused_with_the_reason(make_trainer):
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported: the log-probabilities"):
        make_trainer(peft_config=LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))


def test_the_whole_output_layer_trains_next_to_an_adapter(make_trainer, make_config):
    adapter = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    trainer = make_trainer(make_config(sdar_coef=0.5), peft_config=adapter)
    before = trainer.model.get_output_embeddings().weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.get_output_embeddings().weight)
    output = scored_batch(trainer)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    length = output["completion_ids"].size(1)
    ours = trainer._score(trainer.model, ids, mask, output["completion_mask"]).logps
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, output["completion_ids"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(ours, expected * output["completion_mask"], rtol=1e-4, atol=1e-4)


def test_an_adapter_on_a_base_of_four_bits_trains(make_config, tasks, skills):
    trainer = SDARTrainer(
        model=TINY_POLICY,  # blocks of 64 weights do not fit the random model
        args=make_config(sdar_coef=0.5, beta=0.01, model_init_kwargs={"dtype": "float32"}),
        train_dataset=tasks,
        environment_factory=CountingEnv,
        skills=skills,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    assert isinstance(trainer.model.get_base_model().model.layers[0].mlp.up_proj.base_layer, bnb.nn.Linear4bit)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert any(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters() if p.requires_grad)


def test_a_merged_adapter_is_a_plain_model_that_trains_on(make_trainer, make_config, tmp_path, random_model_folder):
    trainer = make_trainer(peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    ids = torch.arange(10, 30).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(random_model_folder)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").merge_and_unload().save_pretrained(
        tmp_path / "merged"
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    trainer.processing_class.save_pretrained(tmp_path / "merged")
    again = SDARTrainer(
        model=str(tmp_path / "merged"),
        args=make_config(max_steps=1),
        train_dataset=trainer.train_dataset,
        environment_factory=CountingEnv,
        skills=trainer.teacher_context.retriever.library,
    )
    again.train()
