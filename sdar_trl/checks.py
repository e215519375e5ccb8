"""What a trainer is given, read and checked before anything is loaded or trained.

What concerns the whole run is refused here, with what was wrong, what was expected and what to do.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset

from .contexts import SkillContext, TeacherContext
from .envs.border import Border, short
from .skills import SkillLibrary


logger = logging.getLogger(__name__)

_ROWS_READ = 1000  # at once
# what TRL takes for pictures, and what it calls reward functions with
_NAMES_OF_TRL = {"image", "images", "prompts", "completions"}


# Arguments


def check_args(args: Any) -> None:
    """Refuse a configuration that is none, and say what makes a run on a CPU needlessly slow."""
    if not hasattr(args, "sdar_coef"):
        raise ValueError(
            f"`args` must be an `SDARConfig`, got {type(args).__name__}. It takes every argument of `GRPOConfig`: "
            '`SDARConfig(output_dir="outputs")`.'
        )
    if args.bf16 and args.device.type == "cpu":
        logger.warning(
            "`bf16` is on, as is TRL's default, and this run is on a CPU, where it makes a step 4 to 8 times slower. "
            "Pass `bf16=False`."
        )


def read_gate(gate: Any) -> Callable | None:
    """A gate of the user's own, whose weights are checked wherever it is called."""
    expected = "`gate` must be a function of (gap, entropy, gate_beta) to a weight for each token, of the gap's shape"
    if gate is None:
        return None
    if not callable(gate):
        raise ValueError(f"{expected}; got {gate!r}. One by its name is an option: `SDARConfig(gate=...)`.")
    with suppress(ValueError):  # some built-in functions do not tell what they take
        try:
            inspect.signature(gate).bind(None, None, None)
        except TypeError as error:
            raise TypeError(f"{expected}; `{getattr(gate, '__name__', gate)}` is not: {error}.") from None

    def checked(gap: Any, entropy: Any, beta: float) -> Any:
        weights = gate(gap, entropy, beta)
        shape = getattr(weights, "shape", repr(weights))
        if shape != gap.shape:
            raise ValueError(f"{expected}, {tuple(gap.shape)}; got {shape}.")
        if not weights.isfinite().all():
            raise ValueError(f"{expected}; got weights that are not finite.")
        return weights

    return checked


# Skills


def read_skills(skills: Any, args: Any) -> SkillLibrary | TeacherContext | None:
    """
    What the teacher reads, as a trainer takes it.

    Args:
        skills ([`SkillLibrary`], `TeacherContext`, `str` or `Path`, *optional*):
            A path is a library's folder.
        args ([`SDARConfig`]):
            Says who reads them.

    Returns:
        [`SkillLibrary`], `TeacherContext` or `None`: the library or the function.

    Raises:
        `ValueError`: if they are something else, or missing where they are read.
    """
    if isinstance(skills, str | Path):
        if not Path(skills).is_dir():
            raise ValueError(
                f"`skills` is the path of a folder with skills, and there is none at {str(skills)!r}. Those that come "
                'with the package are had by `SkillLibrary.bundled("webshop")`.'
            )
        skills = SkillLibrary.from_folder(skills)
    if args.sdar_coef > 0 and skills is None:
        raise ValueError(
            f"`sdar_coef` is {args.sdar_coef}, but the teacher has nothing to read. Pass `skills`, e.g. "
            '`SkillLibrary.bundled("webshop")`, or set `sdar_coef=0` to train with GRPO alone.'
        )
    if args.student_skills != "never" and not isinstance(skills, SkillLibrary | SkillContext):
        raise ValueError(
            f"`student_skills` is {args.student_skills!r}, so `skills` must be a `SkillLibrary`; got {skills!r}."
        )
    readable = isinstance(skills, SkillLibrary) or (callable(skills) and not isinstance(skills, type))
    if skills is not None and not readable:
        raise ValueError(
            "`skills` must be a `SkillLibrary`, a folder of skills, a `SkillContext` (of a retriever: "
            f"`SkillContext(retriever)`) or a function from finished episodes to texts; got {skills!r}."
        )
    return skills


def check_teacher_weights(trainer: Any) -> None:
    """
    Refuse a teacher whose weights nobody keeps.

    Args:
        trainer ([`SDARTrainer`]):
            The trainer, with what TRL has loaded.

    Raises:
        `ValueError`: if there is neither a reference model nor an adapter to do without.
    """
    args = trainer.args
    if args.teacher_weights in ("base", "ema") and trainer.ref_model is None and not is_peft_model(trainer.model):
        raise ValueError(
            f"`teacher_weights={args.teacher_weights!r}` is the reference model, which TRL loads only with `beta` "
            "above 0 where all weights are trained. Set `beta`, 1e-8 if no KL is wanted, or train an adapter."
        )


# Rewards


def read_rewards(reward_funcs: Any, classes: Any, args: Any, own: Callable) -> tuple[list[Any], list[Any] | None, Any]:
    """
    Put a text environment's return behind the other rewards, as TRL puts its environments' own: in each of the lists.

    Args:
        reward_funcs (`RewardFunc` or `list[RewardFunc]`, *optional*), classes:
            The trainer's `reward_funcs` and `reward_processing_classes`.
        args ([`SDARConfig`]):
            May have `reward_weights`; the caller's stays as it is.
        own (`Callable`):
            The environment's.

    Returns:
        `tuple`: the three of them, lengthened.
    """
    given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
    if classes is not None:
        classes = [*(classes if isinstance(classes, list) else [classes]), None]
    if args.reward_weights is not None:
        args = copy.copy(args)
        args.reward_weights = [*args.reward_weights, 1.0]
    return [*given, own], classes, args


# Tasks


def read_tasks(dataset: Any, environment_factory: Any, args: Any, plays_text: bool) -> Any:
    """
    The tasks, as a trainer takes them.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            The tasks. Without them, a text environment states its own, as TRL's own environments may.
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes the environments.
        args ([`SDARConfig`]):
            Says how many are needed.
        plays_text (`bool`):
            Whether these are text environments.

    Returns:
        The dataset.

    Raises:
        `ValueError`: if there are fewer tasks than a batch needs, columns or prompts that text environments cannot
            use, or no turns to compare with `step_coef`.
    """
    if args.step_coef > 0 and not plays_text:
        raise ValueError(
            "`step_coef` compares the turns of episodes, and TRL's own loops do not tell them apart; pass an "
            "`environment_factory` whose environments have `step`, or set `step_coef=0`."
        )
    needed = args.generation_batch_size // args.num_generations
    if dataset is None and plays_text:
        if isinstance(environment_factory, Mapping):
            raise ValueError(
                "Several environments need a `train_dataset` whose column `environment` names one of them in each "
                f"row, one of {list(environment_factory)}."
            )
        if args.max_steps <= 0:
            raise ValueError(
                "Without a `train_dataset` the environment states its own tasks, and nothing says how long to train: "
                "set `max_steps`."
            )
        return Dataset.from_list([{"prompt": [{"role": "user", "content": ""}]}] * needed)
    if not isinstance(dataset, Dataset):
        return dataset  # a stream cannot be looked at; anything else is TRL's to refuse
    if len(dataset) < needed:
        raise ValueError(
            f"`train_dataset` has {len(dataset)} {'task' if len(dataset) == 1 else 'tasks'}, and a generation batch "
            f"needs {needed}: it has {args.generation_batch_size} episodes (`per_device_train_batch_size` x processes "
            f"x `steps_per_generation`), `num_generations` ({args.num_generations}) of each task. Training would end "
            "before its first step. Add tasks, or lower `per_device_train_batch_size` or `steps_per_generation`."
        )
    if environment_factory is None and "prompt" not in dataset.column_names:
        raise ValueError(
            f"`train_dataset` needs a column `prompt`, messages or a text; it has {dataset.column_names}. Only an "
            "environment can state a task by itself."
        )
    if plays_text and (taken := sorted(_NAMES_OF_TRL.intersection(dataset.column_names))):
        raise ValueError(
            f"`train_dataset` has columns {taken}, names that TRL uses for something else: pictures, or what reward "
            "functions are called with. Rename them, here and in the environment's `reset`."
        )
    if plays_text and "prompt" in dataset.column_names:
        border = Border()
        last = None  # worlds often give all their tasks one prompt; a million of them are seen to be alike at once
        for number, rows in enumerate(dataset.select_columns("prompt").with_format("arrow").iter(_ROWS_READ)):
            prompts = rows["prompt"].combine_chunks()
            if last is None or not prompts.equals(last):
                for index, prompt in enumerate(prompts.to_pylist(), number * _ROWS_READ):
                    border.messages(prompt, f"row {index}")
            last = prompts
    return dataset


def reads_text(dataset: Any) -> bool:
    """Whether the prompts of a dataset are texts in place of messages."""
    return isinstance(dataset, Dataset) and len(dataset) > 0 and isinstance(dataset[0].get("prompt"), str)


def plain_rows(rows: Sequence[Mapping[str, Any]], border: Border, plays_text: bool) -> list[dict[str, Any]]:
    """
    Rows of a batch as TRL takes them, with prompts of plain text.

    Args:
        rows (`list[dict]`):
            The rows.
        border ([`~sdar_trl.envs.border.Border`]):
            Reads the prompts.
        plays_text (`bool`):
            Whether text environments play them; TRL's own may state the prompt themselves.

    Returns:
        `list[dict]`: new rows.

    Raises:
        `ValueError`: if a prompt is neither a text nor messages of text.
    """
    plain = []
    for row in rows:
        row = {**row}
        prompt, task = row.pop("prompt", None), f"task {short(row.get('task_id', ''))}"
        if plays_text:
            row["prompt"] = border.messages(prompt, task)
        elif isinstance(prompt, str):
            row["prompt"] = border.text(prompt, "A prompt")
        elif prompt is not None:
            row["prompt"] = [border.message(message, task) for message in prompt]
        plain.append(row)
    return plain


def prompt_of(row: Mapping[str, Any]) -> Any:
    """A row's prompt; an empty user message where an environment is to state it, as in TRL."""
    return row.get("prompt", [{"role": "user", "content": ""}])
