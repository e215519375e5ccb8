"""Rollouts by vLLM's engine, the real one, in TRL's colocate mode, in float32."""

import copy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from toys import CountingEnv, OneByOne, ProcessEnv
from transformers import AutoModelForCausalLM

from sdar_trl.backends import TrainerBackend
from sdar_trl.engine import EngineBackend
from sdar_trl.evaluation import evaluate_trainer
from sdar_trl.generation import CachedGenerator
from sdar_trl.rollout import Rollout
from sdar_trl.rows import episode_rows


LENGTHS = (6, 1, 4, 2, 3, 1, 2, 4)
# nats; on a GPU, attention is computed in TF32
TOLERANCE = 1e-2 if torch.cuda.is_available() else 1e-4


@pytest.fixture(scope="module")
def shared():
    """The trainer that most tests use: an engine takes seconds to build."""
    return {}


@pytest.fixture
def trainer(shared, make_engine_trainer):
    if not shared:
        shared["trainer"] = make_engine_trainer(max_turns=5)
        shared["weights"] = copy.deepcopy(shared["trainer"].model.state_dict())
    trainer = shared["trainer"]
    trainer.model.load_state_dict(shared["weights"])
    trainer._last_loaded_step = -1
    trainer.vllm_generation.temperature = 1.0
    yield trainer
    assert trainer.vllm_generation.llm.llm_engine.get_num_unfinished_requests() == 0


def rows(trainer, **changes):
    tasks = trainer.train_dataset
    return [{**tasks[place], "length": length, **changes} for place, length in enumerate(LENGTHS)]


def with_backend(trainer, backend, factory=CountingEnv, history="growing"):
    """A rollout as the trainer's own, by another backend."""
    options = {"max_turns": 5, "max_response_length": 8, "max_completion_length": 400}
    return Rollout(factory, trainer.rollout.chat, backend, history=history, history_window=1, **options)


def greedy_generate(trainer):
    """What `generate` makes of the trainer's model."""
    config = copy.deepcopy(trainer.model.generation_config)
    config.update(do_sample=False, max_new_tokens=8, eos_token_id=trainer.eos_token_ids, pad_token_id=0)
    return CachedGenerator(lambda: nullcontext(trainer.model), config)


def told(episodes):
    return [(e.stop_reason, e.error, [(t.new_ids, t.response_ids) for t in e.turns]) for e in episodes]


def fresh_logps(model, row):
    """Log-probs of a row's completion by a plain forward."""
    with torch.no_grad():
        ids = torch.tensor([row.prompt_ids + row.completion_ids], device=model.device)
        logits = model(ids).logits[0].double().cpu()
    logps = logits.log_softmax(-1)[len(row.prompt_ids) - 1 : -1]
    return logps.gather(1, torch.tensor(row.completion_ids).unsqueeze(1)).squeeze(1)


def largest_difference(model, episodes):
    """Between the engine's log-probs and a fresh forward's, over the sampled tokens; nats."""
    found = []
    for row in (row for episode in episodes for row in episode_rows(episode, 0)):
        mask = torch.tensor(row.mask).bool()
        found.append((torch.tensor(row.logprobs).double() - fresh_logps(model, row))[mask].abs().max())
    return float(max(found))


@pytest.mark.parametrize("history", ["growing", "window"])
def test_the_engines_log_probs_are_those_of_a_fresh_forward(trainer, history):
    assert isinstance(trainer.rollout.backend, EngineBackend)
    episodes = with_backend(trainer, trainer.rollout.backend, history=history).play(rows(trainer))
    assert sum(len(e.turns) for e in episodes) > 15
    assert largest_difference(trainer.model, episodes) < TOLERANCE


@pytest.mark.parametrize("history", ["growing", "window"])
@pytest.mark.parametrize("factory", [CountingEnv, ProcessEnv])
def test_greedy_episodes_are_those_of_generate_and_of_trls_calls_turn_by_turn(trainer, history, factory):
    trainer.vllm_generation.temperature = 0.0
    backends = (trainer.rollout.backend, TrainerBackend(trainer, None), greedy_generate(trainer))
    ours, by_turn, plain = (
        told(with_backend(trainer, backend, factory, history).play(rows(trainer))) for backend in backends
    )
    assert ours == by_turn == plain
    assert len({len(turns) for _, _, turns in ours}) > 2


def test_the_engine_has_the_weights_of_the_present_step(trainer):
    trainer.rollout.play(rows(trainer))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.5)
    stale = trainer.rollout.play(rows(trainer))  # within a step TRL pushes them once
    assert largest_difference(trainer.model, stale) > 0.1
    trainer.state.global_step += 1
    assert largest_difference(trainer.model, trainer.rollout.play(rows(trainer))) < TOLERANCE


def test_a_response_follows_from_its_seed_whatever_is_generated_beside_it(trainer):
    tasks, seeds = rows(trainer), list(range(8))
    together = told(trainer.rollout.play(tasks, seeds=seeds))
    backwards = told(trainer.rollout.play(tasks[::-1], seeds=seeds[::-1]))[::-1]
    alone = [told(trainer.rollout.play([task], seeds=[seed]))[0] for task, seed in zip(tasks, seeds, strict=True)]
    assert together == backwards == alone
    assert told(trainer.rollout.play(tasks, seeds=[seed + 8 for seed in seeds])) != together
    # without seeds, by torch's random state
    found = []
    for state in (1, 1, 2):
        torch.manual_seed(state)
        found.append(told(trainer.rollout.play(tasks)))
    assert found[0] == found[1] != found[2]


def test_sampling_is_trls(trainer, monkeypatch):
    """What reaches the engine's sampler, by our way and by TRL's `generate`."""
    engine = trainer.vllm_generation
    monkeypatch.setattr(engine, "generation_kwargs", {"presence_penalty": 0.3, **engine.generation_kwargs})
    for name, value in {"top_p": 0.9, "top_k": 7, "min_p": 0.01, "repetition_penalty": 1.1}.items():
        monkeypatch.setattr(engine, name, value)
    given = []
    add_request = engine.llm.llm_engine.add_request

    def spy(request_id, prompt, params, **kwargs):
        given.append(params)
        return add_request(request_id, prompt, params, **kwargs)

    monkeypatch.setattr(engine.llm.llm_engine, "add_request", spy)
    trainer.rollout.play(rows(trainer)[:1])
    ours = given[0]
    with_backend(trainer, TrainerBackend(trainer, None)).play(rows(trainer)[:1])
    theirs = given[-1]
    assert ours.seed is not None and theirs.seed is None and ours.top_k == 7 and ours.presence_penalty == 0.3
    assert (ours.detokenize, theirs.detokenize) == (False, True)  # the engine's text is not read
    ours.seed, ours.detokenize = None, True
    assert repr(ours) == repr(theirs)


def test_stop_strings_end_a_response(trainer, monkeypatch):
    trainer.vllm_generation.temperature = 0.0
    [episode] = trainer.rollout.play(rows(trainer)[:1])
    response = episode.turns[0].response.removesuffix("<|im_end|>")
    middle = response[len(response) // 2]
    monkeypatch.setattr(
        trainer.vllm_generation, "generation_kwargs", {**trainer.vllm_generation.generation_kwargs, "stop": [middle]}
    )
    [stopped] = trainer.rollout.play(rows(trainer)[:1])
    assert len(stopped.turns[0].response_ids) < len(episode.turns[0].response_ids)
    assert middle in stopped.turns[0].response


@pytest.mark.parametrize("fails_at", [0, 2])
def test_an_environment_that_fails_in_the_middle_costs_its_own_episode(trainer, fails_at, caplog):
    trainer.vllm_generation.temperature = 0.0
    tasks = rows(trainer)
    whole = told(trainer.rollout.play(tasks))
    tasks[2]["fails_at"] = fails_at
    episodes = trainer.rollout.play(tasks)
    assert [bool(e.error) for e in episodes] == [place == 2 for place in range(8)]
    assert [one for place, one in enumerate(told(episodes)) if place != 2] == [
        one for place, one in enumerate(whole) if place != 2
    ]


def test_an_exception_leaves_no_request_in_the_engine(trainer, monkeypatch):
    step, steps = trainer.vllm_generation.llm.llm_engine.step, []

    def interrupted():
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(trainer.vllm_generation.llm.llm_engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.rollout.play(rows(trainer))
    assert trainer.vllm_generation.llm.llm_engine.get_num_unfinished_requests() == 0
    assert largest_difference(trainer.model, trainer.rollout.play(rows(trainer))) < TOLERANCE


def test_with_sleep_mode_the_engine_wakes_once_a_rollout(trainer, monkeypatch):
    """On a CPU an engine cannot sleep: what TRL's own object is told is counted."""
    engine, calls = trainer.vllm_generation, []
    monkeypatch.setattr(engine, "enable_sleep_mode", True)
    monkeypatch.setattr(engine, "_llm_weights_sleeping", True)
    monkeypatch.setattr(engine.llm, "wake_up", lambda tags: calls.append(f"wake {tags[0]}"))
    monkeypatch.setattr(engine.llm, "sleep", lambda level: calls.append(f"sleep {level}"))
    sync = engine.sync_weights
    monkeypatch.setattr(engine, "sync_weights", lambda: (calls.append("sync"), sync()))
    monkeypatch.setattr("trl.generation.vllm_generation.empty_cache", lambda: None)
    once = ["sync", "wake weights", "wake kv_cache", "sleep 2"]
    episodes = trainer.rollout.play(rows(trainer))
    assert calls == once and largest_difference(trainer.model, episodes) < TOLERANCE
    trainer.rollout.play(rows(trainer))  # the weights were dropped, so they are pushed again
    assert calls == once * 2
    calls.clear()
    with_backend(trainer, TrainerBackend(trainer, None)).play(rows(trainer))
    assert calls.count("sync") == 5  # by TRL's calls, once a turn


def test_a_panel_is_played_by_the_engine(trainer):
    options = {"temperature": 0.0, "batch_size": 8}
    first = evaluate_trainer(trainer, trainer.train_dataset, **options)
    second = evaluate_trainer(trainer, trainer.train_dataset, **{**options, "batch_size": 3})
    assert [r.task_id for r in first] == list(trainer.train_dataset["task_id"])
    assert [(r.episode_return, r.turns) for r in first] == [(r.episode_return, r.turns) for r in second]
    assert trainer.vllm_generation.temperature == 1.0
    sampled = [evaluate_trainer(trainer, trainer.train_dataset, seed=3, batch_size=size) for size in (8, 3)]
    assert [r.episode_return for r in sampled[0]] == [r.episode_return for r in sampled[1]]


def test_a_turn_ends_with_the_templates_token_though_the_tokenizers_end_is_another(
    make_engine_trainer, random_model_folder, tokenizer, tmp_path
):
    base = copy.deepcopy(tokenizer)  # as a base model's that was given a chat template
    base.add_special_tokens({"eos_token": "<|endoftext|>", "extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model = AutoModelForCausalLM.from_pretrained(random_model_folder)
    model.resize_token_embeddings(len(base))
    model.config.eos_token_id = model.generation_config.eos_token_id = base.eos_token_id
    end = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "base")
    options = {"max_turns": 5, "max_response_length": 40, "generation_kwargs": {"logit_bias": {end: 6.0}}}
    trainer = make_engine_trainer({"model": str(tmp_path / "base")}, **options)
    responses = [t.response_ids for e in trainer.rollout.play(rows(trainer)) for t in e.turns]
    ended = [ids for ids in responses if end in ids]
    assert ended and all(ids.index(end) == len(ids) - 1 for ids in ended)


def test_a_lora_trains_with_the_engine(make_engine_trainer):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = make_engine_trainer({"peft_config": adapter}, max_steps=2, max_turns=5)
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert all(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters() if p.requires_grad)
    logged = trainer.state.log_history[0]
    assert logged["sampling/sampling_logp_difference/max"] < TOLERANCE and logged["time/generation"] > 0
    assert largest_difference(trainer.model, trainer.rollout.play(rows(trainer))) < TOLERANCE


def test_a_run_that_stops_and_goes_on_is_the_run_that_did_not(make_engine_trainer):
    options = {"max_turns": 5, "save_strategy": "steps", "save_steps": 2, "max_completion_length": 96}
    whole = make_engine_trainer(max_steps=4, **options)
    whole.train()
    again = make_engine_trainer(max_steps=4, **options)
    again.train(resume_from_checkpoint=str(Path(again.args.output_dir) / "checkpoint-2"))
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name)), name


def test_two_processes_with_an_engine_each_train_as_one(tmp_path, random_model_folder):
    """Each plays its own episodes, as many turns as they take; neither waits for the other."""
    script = Path(__file__).with_name("two_processes.py")
    config = Path(__file__).parents[2] / "examples/accelerate_configs/ddp_cpu.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(tmp_path), random_model_folder],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["turns"] != second["turns"]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert max(first["difference"], second["difference"]) < TOLERANCE


def test_the_toy_of_the_other_tests_speaks_as_the_engine_does(trainer):
    """tests/test_streaming.py plays with a toy backend: here is the same of both."""
    generator = greedy_generate(trainer)
    toy = OneByOne(lambda ids, seed: (generator.generate([ids])[0][0], [0.0]))
    trainer.vllm_generation.temperature = 0.0
    assert told(with_backend(trainer, toy).play(rows(trainer))) == told(trainer.rollout.play(rows(trainer)))
