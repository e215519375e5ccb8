"""Playing a panel of tasks: with a plain model, or with a trainer's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..chat import Chat
from ..contexts import SkillContext
from ..episodes import Episode
from ..generation import CachedGenerator, can_reuse_cache
from ..rollout import Rollout
from ..skills import SkillLibrary
from .records import Record


if TYPE_CHECKING:
    from ..trainer import SDARTrainer


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A fixed seed inside; the random state outside is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _temperature(trainer: "SDARTrainer", temperature: float) -> Iterator[None]:
    """Inside, a trainer samples at another temperature; at 0 it is greedy."""
    backend: Any = trainer.vllm_generation if trainer.use_vllm else trainer.generation_config
    values = {"temperature": temperature} if trainer.use_vllm else _sampling(temperature)  # 0 is greedy for vLLM too
    before = {name: getattr(backend, name) for name in values}
    try:
        for name, value in values.items():
            setattr(backend, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(backend, name, value)


def _sampling(temperature: float) -> dict[str, Any]:
    """What `generate` is to be told for a temperature; greedy, it warns about anything but its own defaults."""
    if temperature > 0:
        return {"do_sample": True, "temperature": temperature}
    return {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}


def evaluate(
    rollout: Rollout,
    tasks: Sequence[Mapping[str, Any]],
    *,
    skills: SkillLibrary | SkillContext | None = None,
    batch_size: int = 64,
    seed: int = 0,
    on_episode: Callable[[Episode], None] = lambda episode: None,
) -> list[Record]:
    """
    Play one episode of each task.

    Args:
        rollout ([`Rollout`]):
            The policy and its environments; see [`policy_rollout`].
        tasks (`Dataset` or `list[dict]`):
            The panel.
        skills ([`SkillLibrary`] or [`SkillContext`], *optional*):
            If given, the policy reads the skills retrieved for each task. In SDAR the student never does.
        batch_size (`int`, *optional*, defaults to `64`):
            Episodes played at once.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        on_episode (`Callable[[Episode], None]`, *optional*):
            Called with each episode, to look at or write down.

    Returns:
        `list[Record]`: one per episode, in the order of the tasks.
    """
    context = SkillContext(skills) if isinstance(skills, SkillLibrary) else skills
    rows = list(tasks)
    records: list[Record] = []
    with _seeded(seed):
        for start in range(0, len(rows), batch_size):
            for episode in rollout.play(rows[start : start + batch_size], context):
                on_episode(episode)
                records.append(Record.of(episode, seed))
    return records


def policy_rollout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environment_factory: Any,
    *,
    temperature: float = 0.4,
    max_turns: int = 15,
    max_response_length: int = 512,
    max_completion_length: int = 4096,
    history: str = "growing",
    history_window: int = 2,
    context_role: str = "system",
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Rollout:
    """
    A rollout played by a plain Transformers model, without a trainer.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes the environments.
        temperature (`float`, *optional*, defaults to `0.4`):
            Sampling temperature, as in the published evaluations; 0 is greedy.
        max_turns (`int`, *optional*, defaults to `15`):
            Most turns of an episode.
        max_response_length (`int`, *optional*, defaults to `512`):
            Most tokens of one response.
        max_completion_length (`int`, *optional*, defaults to `4096`):
            Most tokens after the prompt: of an episode with a growing history, of a row by turns with a window.
        history (`str`, *optional*, defaults to `"growing"`), history_window (`int`, *optional*, defaults to `2`):
            What the policy reads in each turn, as in [`SDARConfig`].
        context_role (`str`, *optional*, defaults to `"system"`):
            Message that gets the skills, where it reads any: `"user"` for a template without a system message.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Passed on to the chat template.

    Returns:
        [`Rollout`]: the rollout.
    """
    chat = Chat(tokenizer, chat_template_kwargs, context_role)
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else chat.end_of_turn_id
    stop_ids = sorted({chat.end_of_turn_id, tokenizer.eos_token_id})
    generation_config = GenerationConfig(
        max_new_tokens=max_response_length,
        eos_token_id=stop_ids,
        pad_token_id=pad_token_id,
        repetition_penalty=1.0,
        **{"top_k": 0, "top_p": 1.0, **_sampling(temperature)},
    )

    reuse_cache = can_reuse_cache(model, generation_config)
    generator = CachedGenerator(lambda: nullcontext(model), generation_config, reuse_cache)
    return Rollout(
        environment_factory,
        chat,
        generator,
        max_turns=max_turns,
        max_response_length=max_response_length,
        max_completion_length=max_completion_length,
        context_length=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        history=history,
        history_window=history_window,
    )


def evaluate_trainer(
    trainer: "SDARTrainer",
    tasks: Sequence[Mapping[str, Any]],
    *,
    temperature: float = 0.4,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Record]:
    """
    Play a panel with a trainer's current policy, on all its processes; call it on every one of them.

    Args:
        trainer ([`SDARTrainer`]):
            The trainer, with text environments.
        tasks (`Dataset` or `list[dict]`):
            The panel.
        temperature (`float`, *optional*, defaults to `0.4`):
            Sampling temperature, as in the published evaluations; 0 is greedy.
        batch_size (`int`, *optional*, defaults to `64`):
            Episodes played at once on each process.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.

    Returns:
        `list[Record]`: one per episode, in the order of the tasks, the same on every process. The policy reads no
        skills, unless `student_skills` says so.
    """
    index, count = trainer.accelerator.process_index, trainer.accelerator.num_processes
    rows = list(tasks)
    batches = range(0, len(rows), batch_size * count)  # as many on every process; the last may hold no task
    was_training = trainer.model.training
    trainer.model.eval()  # no dropout
    records: list[tuple[int, Record]] = []
    try:
        with _seeded(seed + index), _temperature(trainer, temperature):
            for start in batches:
                mine = range(start, min(start + batch_size * count, len(rows)))[index::count]
                episodes = trainer.rollout.play([rows[i] for i in mine], trainer.student_context)
                records += zip(mine, (Record.of(episode, seed) for episode in episodes), strict=True)
    finally:
        trainer.model.train(was_training)
    return [record for _, record in sorted(gather_object(records), key=lambda numbered: numbered[0])]
