"""Playing a panel of tasks: with a plain model, or with a trainer's."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..chat import Chat
from ..contexts import SkillContext
from ..episodes import Episode
from ..generation import CachedGenerator, can_reuse_cache
from ..rollout import Rollout
from ..skills import SkillLibrary
from .files import RecordFile
from .panels import task_ids
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


@dataclass(frozen=True)
class _Try:
    """One episode that a panel asks for."""

    task: Mapping[str, Any]
    task_id: str
    attempt: int
    seed: int

    @property
    def stream(self) -> int:
        """Seed of its own, the same on every machine and whatever is played beside it."""
        text = json.dumps([self.seed, self.task_id, self.attempt])
        return int.from_bytes(sha256(text.encode()).digest()[:8], "big")

    @property
    def key(self) -> tuple[str, int]:
        return self.task_id, self.attempt


class _Evaluation:
    """The tries of a panel: which are left to play, and the records of those that were."""

    def __init__(
        self,
        tasks: Any,
        tries: int,
        seed: int,
        path: str | Path | None,
        about: Mapping[str, Any],
        shown: bool = True,
    ):
        seen: Counter[str] = Counter()
        self.tries: list[_Try] = []
        ids = task_ids(tasks)
        for row, task_id in zip(tasks, ids, strict=True):
            for _ in range(tries):  # an id that is there twice has as many more tries
                self.tries.append(_Try(row, task_id, seen[task_id], seed))
                seen[task_id] += 1
        self.file: RecordFile | None = None
        known: list[Record] = []
        if path is not None:
            self.file = RecordFile(path, {"seed": seed, "tries": tries, **about})
            known = self.file.records
        self.records = {(record.task_id, record.attempt): record for record in known}
        self.left = [one for one in self.tries if one.key not in self.records]
        done = len(self.tries) - len(self.left)
        # `None`: shown in a terminal, and not in a log
        self._bar = tqdm(
            total=len(self.tries), initial=done, unit="episode", leave=False, disable=None if shown else True
        )

    def add(self, records: Iterable[Record]) -> None:
        """Take in what was played."""
        records = list(records)
        self.records.update({(record.task_id, record.attempt): record for record in records})
        if self.file is not None:
            self.file.add(records)
        self._bar.update(len(records))

    def end(self) -> list[Record]:
        """The records, in the order of the tasks."""
        self._bar.close()
        return [self.records[one.key] for one in self.tries]


def evaluate(
    rollout: Rollout,
    tasks: Any,
    *,
    tries: int = 1,
    skills: SkillLibrary | SkillContext | str | Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    on_episode: Callable[[Episode], None] = lambda episode: None,
    path: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[Record]:
    """
    Play each task one or several times. Each try draws from a stream of its own, which follows from `seed`, the task's
    id and the number of the try: the records are the same for any batch size, order of the tasks and number of
    processes, but for the rounding of a forward.

    Args:
        rollout ([`Rollout`]):
            The policy and its environments; see [`policy_rollout`].
        tasks (`Dataset` or `list[dict]`):
            The panel's tasks, see [`Panel`].
        tries (`int`, *optional*, defaults to `1`):
            Episodes of each task.
        skills ([`SkillLibrary`], its folder, or [`SkillContext`], *optional*):
            If given, the policy reads the skills retrieved for each task. In SDAR the student never does.
        batch_size (`int`, *optional*, defaults to `64`):
            Episodes played at once.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        on_episode (`Callable[[Episode], None]`, *optional*):
            Called with each episode that is played, to look at or write down.
        path (`str` or `Path`, *optional*):
            A file for the records, one JSON line each, written batch by batch. What it has already is not played.
        about (`dict[str, Any]`, *optional*):
            With `path`: what else makes this evaluation what it is (policy, panel, temperature). It is written on top,
            and a file of another evaluation is refused.

    Returns:
        `list[Record]`: one per episode, in the order of the tasks.
    """
    skills = SkillLibrary.from_folder(skills) if isinstance(skills, str | Path) else skills
    context = SkillContext(skills) if isinstance(skills, SkillLibrary) else skills
    panel = _Evaluation(tasks, tries, seed, path, about or {})
    with _seeded(seed):
        for batch in _batches(panel.left, batch_size):
            episodes = rollout.play([one.task for one in batch], context, [one.stream for one in batch])
            for episode in episodes:
                on_episode(episode)
            panel.add(_records(batch, episodes))
    return panel.end()


def weights_hash(model: torch.nn.Module) -> str:
    """A short hash of some weights of every parameter, to tell two checkpoints apart in `about`."""
    found = sha256()
    for weights in model.parameters():
        few = weights.detach().flatten()[:: max(1, weights.numel() // 64)]
        found.update(few.float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _batches(tries: Sequence[_Try], size: int) -> Iterator[Sequence[_Try]]:
    return (tries[start : start + size] for start in range(0, len(tries), size))


def _records(tries: Sequence[_Try], episodes: Sequence[Episode]) -> list[Record]:
    return [Record.of(episode, one.seed, one.attempt) for one, episode in zip(tries, episodes, strict=True)]


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
    tasks: Any,
    *,
    tries: int = 1,
    temperature: float = 0.4,
    batch_size: int = 64,
    seed: int = 0,
    path: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[Record]:
    """
    Play a panel with a trainer's current policy, on all its processes; call it on every one of them. The records are
    those of [`evaluate`], except that vLLM and continuous batching sample by themselves.

    Args:
        trainer ([`SDARTrainer`]):
            The trainer, with text environments.
        tasks (`Dataset` or `list[dict]`):
            The panel's tasks, see [`Panel`].
        tries (`int`, *optional*, defaults to `1`):
            Episodes of each task.
        temperature (`float`, *optional*, defaults to `0.4`):
            Sampling temperature, as in the published evaluations; 0 is greedy.
        batch_size (`int`, *optional*, defaults to `64`):
            Episodes played at once on each process.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        path (`str` or `Path`, *optional*), about (`dict[str, Any]`, *optional*):
            A file for the records, as in [`evaluate`], on a disk that all processes see. The main process writes it.

    Returns:
        `list[Record]`: one per episode, in the order of the tasks, the same on every process. The policy reads no
        skills, unless `student_skills` says so.
    """
    if not hasattr(trainer, "rollout"):
        raise ValueError(
            "`evaluate_trainer` plays text environments, and this trainer has none: its loop is TRL's. Give it an "
            "`eval_dataset` and call `trainer.evaluate()`."
        )
    accelerator = trainer.accelerator
    index, count, is_main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    about = {"temperature": temperature, **(about or {})}
    panel = _Evaluation(tasks, tries, seed, path if is_main else None, about, shown=is_main)
    [played] = broadcast_object_list([list(panel.records)])  # other processes have not read the file
    left = [one for one in panel.tries if one.key not in set(played)]
    was_training = trainer.model.training
    trainer.model.eval()  # no dropout
    try:
        with _seeded(seed + index), _temperature(trainer, temperature):
            for batch in _batches(left, batch_size * count):  # as many on every process; the last may hold no task
                mine = batch[index::count]
                streams = [one.stream for one in mine]
                episodes = trainer.rollout.play([one.task for one in mine], trainer.student_context, streams)
                panel.add(gather_object(_records(mine, episodes)))
    finally:
        trainer.model.train(was_training)
    [records] = broadcast_object_list([panel.end() if is_main else []])
    return records
