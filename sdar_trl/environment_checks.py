"""Environments that a trainer is given, tried before anything is loaded or trained; and the first rollout looked at.

What concerns the whole run is refused here, with what was wrong, what was expected and what to do.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset

from .envs.border import Border, short
from .envs.workers import BuildError, close_worker, failure, start_worker
from .episodes import Episode, StopReason


logger = logging.getLogger(__name__)

_TRIED_ROWS = 3


def check_factories(environment_factory: Any) -> None:
    """
    Check that environments can be made.

    Args:
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes environments.

    Raises:
        `ValueError`: if it is an environment itself, or nothing that can be called.
    """
    for factory in _by_name(environment_factory).values():
        if not callable(factory) or (hasattr(factory, "reset") and not inspect.isclass(factory)):
            kind = type(factory).__name__
            raise ValueError(
                "`environment_factory` must be a class, or a function that makes environments: every episode played "
                f"at once needs one of its own. Got {factory!r}; if that is an environment, pass its class, `{kind}`, "
                f"or `functools.partial({kind}, ...)`."
            )


def check_environments(environment_factory: Any, kinds: Mapping[str | None, type], dataset: Any) -> None:
    """
    Check that text environments have their methods and begin one of the first tasks, each where it asks to run.

    Args:
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes the environments.
        kinds (`dict[str, type]`):
            Their classes.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            The tasks. Those of a stream are not tried.

    Raises:
        `ValueError`: if one does not; the message says what to do.
        `RuntimeError`: if one cannot be made.
    """
    if isinstance(environment_factory, Mapping) and isinstance(dataset, Dataset):
        named = set(dataset["environment"]) if "environment" in dataset.column_names else {None}
        if unknown := named - set(environment_factory):
            raise ValueError(
                f"The column `environment` of `train_dataset` must name one of {list(environment_factory)} in each "
                f"row, got {unknown} in some."
            )
    for name, factory in _by_name(environment_factory).items():
        _check_methods(kinds[name])
        if isinstance(dataset, Dataset):
            _try_reset(factory, kinds[name].__name__, _rows_of(dataset, name))


def _by_name(environment_factory: Any) -> Mapping[str | None, Any]:
    if environment_factory is None:
        return {}
    return environment_factory if isinstance(environment_factory, Mapping) else {None: environment_factory}


def _check_methods(kind: type) -> None:
    if any(base.__module__.partition(".")[0] in ("gym", "gymnasium") for base in kind.__mro__):
        raise ValueError(
            f"{kind.__name__} is a Gymnasium environment: its actions and observations are no texts. Wrap it in a "
            "class with `reset(**task) -> str`, which returns the first observation as text, `step(response) -> "
            "Step`, which parses the action from the policy's response, and `close()`; see docs/environments.md."
        )
    missing = [name for name in ("reset", "step", "close") if not callable(getattr(kind, name, None))]
    if missing:
        raise ValueError(
            f"{kind.__name__} has a method `step`, so it is a text environment, and needs `reset`, `step` and "
            f"`close`; it has no {' and no '.join(f'`{name}`' for name in missing)}. (Where `step` is a tool of TRL's "
            "own kind of environment, give it another name.)"
        )


def _rows_of(dataset: Dataset, name: str | None) -> list[dict[str, Any]]:
    """A few tasks of an environment: the first, and others far from it."""
    indices: Sequence[int] = range(len(dataset))
    if name is not None:
        indices = [index for index, named in enumerate(dataset["environment"]) if named == name]
    tried = sorted({len(indices) * part // _TRIED_ROWS for part in range(_TRIED_ROWS)}) if indices else []
    return [dict(dataset[indices[position]]) for position in tried]


def _try_reset(factory: Any, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Begin the first task; if that fails, another, since one broken task costs its own episodes alone."""
    border = Border()
    failures: list[tuple[str, BaseException]] = []
    for row in rows:
        worker = start_worker(factory)
        try:
            worker.start("reset", **row)
            border.observation(worker.result())
            return
        except (KeyboardInterrupt, BuildError):
            raise
        except BaseException as error:
            failures.append((failure("reset", error)[0], error))
        finally:
            close_worker(worker)
    if failures:
        reason, first = failures[0]
        tried = f"{kind} cannot begin a task; tried in {len(rows)}"
        raise ValueError(f"{tried}. In the first: {_advised(reason)}") from first


def _advised(reason: str) -> str:
    """Why an environment failed, and what to do."""
    if "unexpected keyword argument" in reason:
        advice = (
            "`reset` is given every column of the row by name: let it take those that it has no use for, as in "
            "`reset(self, *, code, **_)`."
        )
    elif "missing" in reason and "argument" in reason:
        advice = "`reset` is given the columns of `train_dataset` by name, and none is called so."
    else:
        advice = "`sdar_trl.check_env(environment, tasks)` plays it by hand."
    return f"{reason.rstrip('.')}. {advice}"


def check_first_rollout(episodes: Sequence[Episode]) -> None:
    """
    Check that not every episode failed. Called on all processes.

    Args:
        episodes (`list[Episode]`):
            This process's.

    Raises:
        `RuntimeError`: if all of all processes did; the message has the first one's reason.
    """
    failed = gather_object(
        [(e.task.get("task_id"), e.error) if e.stop_reason is StopReason.ENV_ERROR else None for e in episodes]
    )
    if failed and all(failed):
        task_id, reason = failed[0]
        raise RuntimeError(
            f"The environment failed in all {len(failed)} episodes of the first rollout, so there is nothing to train "
            f"on. In the first{'' if task_id is None else f', of task {short(task_id)}'}: {_advised(reason)}"
        )
