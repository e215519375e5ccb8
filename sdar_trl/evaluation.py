"""How well a policy plays a fixed panel of tasks."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from scipy.stats import binomtest
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .chat import Chat
from .contexts import SkillContext
from .generation import CachedGenerator, can_reuse_cache
from .rollout import Episode, Rollout
from .skills import SkillLibrary
from .teacher import add_context, default_system_text
from .trainer import SDARTrainer


@dataclass(frozen=True)
class PanelResult:
    """
    Result on a panel of tasks, one episode a task.

    Args:
        success (`float`):
            Share of episodes that succeeded.
        score (`float`):
            Mean of the score that the environment reports at the end (`info["score"]`, else the return); 0 for an
            episode that did not end by itself.
        ci_low (`float`):
            Lower end of the 95% interval of `success` (Wilson's, which treats tasks as independent draws).
        ci_high (`float`):
            Upper end.
        n (`int`):
            Number of tasks.
        by_task_type (`dict[str, float]`):
            Success within each task type.
    """

    success: float
    score: float
    ci_low: float
    ci_high: float
    n: int
    by_task_type: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        return asdict(self)


def summarize(records: Sequence[Mapping[str, Any]]) -> PanelResult:
    """
    Aggregate the episodes of a panel.

    Args:
        records (`list[dict]`):
            One per episode, with `success`, `score` and `task_type`.

    Returns:
        [`PanelResult`]: the result.
    """
    successes = [bool(record["success"]) for record in records]
    interval = binomtest(sum(successes), len(successes)).proportion_ci(0.95, method="wilson")
    by_type: dict[str, list[bool]] = defaultdict(list)
    for record, success in zip(records, successes, strict=True):
        by_type[str(record["task_type"])].append(success)
    return PanelResult(
        success=sum(successes) / len(successes),
        score=sum(record["score"] for record in records) / len(records),
        ci_low=float(interval.low),
        ci_high=float(interval.high),
        n=len(records),
        by_task_type={name: sum(values) / len(values) for name, values in sorted(by_type.items())},
    )


def results_table(results: Mapping[str, PanelResult]) -> str:
    """
    Results as a table to print.

    Args:
        results (`dict[str, PanelResult]`):
            A result for each row's name.

    Returns:
        `str`: the table.
    """
    width = max(len(name) for name in results)
    lines = [f"{'':{width}}  success  95% interval   mean score  tasks"]
    for name, result in results.items():
        interval = f"{result.ci_low:6.1%} to {result.ci_high:.1%}"
        lines.append(f"{name:{width}}  {result.success:7.1%}  {interval:15}  {result.score:9.3f}  {result.n:5}")
    return "\n".join(lines)


def episode_record(episode: Episode) -> dict[str, Any]:
    """What `summarize` needs of an episode."""
    return {
        "success": episode.success,
        "score": float(episode.info.get("score", episode.episode_return)),
        "task_type": episode.task.get("task_type", "all"),
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A fixed seed inside; the random state outside is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def evaluate(
    rollout: Rollout,
    tasks: Sequence[Mapping[str, Any]],
    *,
    skills: SkillLibrary | SkillContext | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Episode]:
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

    Returns:
        `list[Episode]`: the episodes, in the order of the tasks.
    """
    with_context = None if skills is None else _skills_in_prompt(skills, rollout.chat)
    rows = list(tasks)
    episodes: list[Episode] = []
    with _seeded(seed):
        for start in range(0, len(rows), batch_size):
            episodes += rollout.play(rows[start : start + batch_size], with_context)
    return episodes


def _skills_in_prompt(
    skills: SkillLibrary | SkillContext, chat: Chat
) -> Callable[[list[Episode]], list[list[dict[str, Any]]]]:
    context = SkillContext(skills) if isinstance(skills, SkillLibrary) else skills
    default_system = default_system_text(chat.tokenizer, chat.template_kwargs)

    def with_context(episodes: list[Episode]) -> list[list[dict[str, Any]]]:
        return [
            add_context(episode.task["prompt"], text, "system", default_system)
            for episode, text in zip(episodes, context(episodes), strict=True)
        ]

    return with_context


def policy_rollout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environment_factory: Any,
    *,
    temperature: float = 0.4,
    max_turns: int = 15,
    max_response_length: int = 512,
    max_completion_length: int = 4096,
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
            Most tokens of an episode after its prompt.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Passed on to the chat template.

    Returns:
        [`Rollout`]: the rollout.
    """
    chat = Chat(tokenizer, chat_template_kwargs)
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else chat.end_of_turn_id
    stop_ids = sorted({chat.end_of_turn_id, tokenizer.eos_token_id})
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    generation_config = GenerationConfig(
        max_new_tokens=max_response_length,
        eos_token_id=stop_ids,
        pad_token_id=pad_token_id,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        **sampling,
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
        on_end=generator.drop_cache,
    )


def evaluate_trainer(
    trainer: SDARTrainer,
    tasks: Sequence[Mapping[str, Any]],
    *,
    temperature: float = 0.4,
    batch_size: int = 64,
    seed: int = 0,
) -> PanelResult:
    """
    Play a panel with a trainer's current policy, on all its processes; call it on every one of them.

    Args:
        trainer ([`SDARTrainer`]):
            The trainer, with text environments.
        tasks (`Dataset` or `list[dict]`):
            The panel.
        temperature (`float`, *optional*, defaults to `0.4`):
            Sampling temperature, as in the published evaluations.
        batch_size (`int`, *optional*, defaults to `64`):
            Episodes played at once on each process.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.

    Returns:
        [`PanelResult`]: the same on every process. The policy reads no skills, unless `student_skills` says so.
    """
    index, count = trainer.accelerator.process_index, trainer.accelerator.num_processes
    rows = list(tasks)
    batches = range(0, len(rows), batch_size * count)  # as many on every process; the last may hold no task
    backend = trainer.vllm_generation if trainer.use_vllm else trainer.generation_config
    training_temperature, backend.temperature = backend.temperature, temperature
    was_training = trainer.model.training
    trainer.model.eval()  # no dropout
    episodes: list[Episode] = []
    try:
        with _seeded(seed + index):
            for start in batches:
                episodes += trainer.rollout.play(
                    rows[start : start + batch_size * count][index::count], trainer.student_context
                )
    finally:
        trainer.model.train(was_training)
        backend.temperature = training_temperature
    return summarize(gather_object([episode_record(episode) for episode in episodes]))
