"""Where an environment runs: in this process, in a thread, or in a process of its own.

An environment's class says which, with an attribute `parallel`: `"inline"` (the default, for what answers at once),
`"thread"` (for what waits for a network), or `"process"` (for what computes, or is not thread-safe). A call that takes
longer than the class attribute `timeout` (seconds) raises `TimeoutError`, except inline.
"""

import functools
import logging
import multiprocessing
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from .base import TextEnv
from .border import BorderError, number, portable, short


logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 300.0
CLOSING_TIME = 5.0  # seconds for a process to end by itself


class BuildError(RuntimeError):
    """An environment could not be made; the cause says why."""

    def __init__(self, cause: BaseException):
        super().__init__(f"The environment could not be made: {_said(cause)}.")


class RemoteError(RuntimeError):
    """An environment raised in a process of its own; the message ends in the traceback from there."""

    def __init__(self, said: str, where: str):
        super().__init__(f"In the environment's process:\n{where}")
        self.said = said


def failure(method: str, error: BaseException) -> tuple[str, str]:
    """
    What went wrong in a call.

    Args:
        method (`str`):
            The method.
        error (`BaseException`):
            What it raised, or what was found in its answer.

    Returns:
        `tuple[str, str]`: the reason in a line, and its kind, by which failures are alike.
    """
    if isinstance(error, BorderError):
        return str(error), str(error).partition("; got")[0]
    said = str(error) if isinstance(error, BuildError) else f"`{method}` raised {_said(error)}"
    return said, said.partition("(")[0]


def _said(error: BaseException) -> str:
    return error.said if isinstance(error, RemoteError) else short(error, 1000)


class InlineWorker:
    """
    An environment in this process. `start` begins a call, `ready` tells whether `result` would wait, `result` gives
    what the call returns or raises.

    Args:
        factory (`Callable`):
            Makes the environment.
        timeout (`float`):
            Most seconds of a call.
    """

    def __init__(self, factory: Callable[[], TextEnv], timeout: float):
        try:
            self._env = factory()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise BuildError(error) from error
        self._timeout = timeout

    def start(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        self._call = functools.partial(getattr(self._env, method), *args, **kwargs)

    def ready(self) -> bool:
        return True

    def result(self) -> Any:
        return self._call()

    def close(self) -> None:
        self._env.close()


class ThreadWorker(InlineWorker):
    """An environment whose calls run in a thread each."""

    _future: Future | None = None

    def start(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        super().start(method, *args, **kwargs)
        self._deadline = time.monotonic() + self._timeout
        self._future = Future()
        threading.Thread(target=_run, args=(self._call, self._future), daemon=True).start()

    def ready(self) -> bool:
        return self._future is None or self._future.done() or time.monotonic() >= self._deadline

    def result(self) -> Any:
        assert self._future is not None
        return self._future.result(_seconds_until(self._deadline))

    def close(self) -> None:
        if self._future is not None and not self._future.done():  # a call that hangs keeps its environment
            self._future.add_done_callback(lambda _: close_worker(self._env))
            return
        self.start("close")
        self._deadline = time.monotonic() + CLOSING_TIME
        self.result()


class ProcessWorker:
    """An environment in a process of its own, which begins to build it at once. `start` raises if it cannot."""

    def __init__(self, factory: Callable[[], TextEnv], timeout: float):
        # forked from a server that has imported the environment, but holds neither threads nor a GPU
        context = multiprocessing.get_context("forkserver")
        module = shown_kind(factory).__module__
        context.set_forkserver_preload([module])
        self._timeout = timeout
        self._deadline = time.monotonic() + max(timeout, DEFAULT_TIMEOUT)  # building is slower than a call
        self._answering = True
        self._built = False
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(factory, end), daemon=True)
        with nullcontext() if module == "__main__" else _without_program():
            self._process.start()
        end.close()

    def start(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        if not self._built:
            try:
                self.result()
            except Exception as error:
                raise BuildError(error) from error
            self._built = True
        message = pickle.dumps((method, args, kwargs))
        self._deadline = time.monotonic() + self._timeout
        self._answering = True
        with suppress(OSError), self._watched():  # it has died, as `result` will say
            self._pipe.send_bytes(message)

    def ready(self) -> bool:
        return self._pipe.poll(0) or time.monotonic() >= self._deadline

    def result(self) -> Any:
        if not self._pipe.poll(_seconds_until(self._deadline)):
            raise TimeoutError(f"The environment did not answer within {self._timeout} seconds.")
        try:
            with self._watched():
                answer = self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise RuntimeError("The environment's process died.") from error
        done, value = pickle.loads(answer)
        self._answering = False
        if not done:
            raise RemoteError(*value)
        return value

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A message that stops in its middle is not waited for without end: its process is killed."""
        watch = threading.Timer(max(_seconds_until(self._deadline), CLOSING_TIME), self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def close(self) -> None:
        if not self._answering:
            with suppress(OSError):
                self._pipe.send_bytes(pickle.dumps(None))
            self._process.join(CLOSING_TIME)
        self._process.kill()
        self._process.join()
        self._pipe.close()


EnvWorker = InlineWorker | ProcessWorker
WORKERS: dict[str, Callable[[Callable[[], TextEnv], float], EnvWorker]] = {
    "inline": InlineWorker,
    "thread": ThreadWorker,
    "process": ProcessWorker,
}


def shown_kind(factory: Any) -> Any:
    """The class, or function, that a factory shows to be."""
    return factory.func if isinstance(factory, functools.partial) else factory


def start_worker(factory: Callable[[], TextEnv]) -> EnvWorker:
    """
    Have an environment built where it asks to run.

    Args:
        factory (`Callable`):
            The environment's class, a [`functools.partial`] of it, or a function with attributes `parallel` and
            `timeout` of its own. For a process, it must be importable: not a lambda, nor defined in a notebook.

    Returns:
        `InlineWorker` or `ProcessWorker`: the worker.

    Raises:
        `ValueError`: if `parallel` or `timeout` is none that exists.
    """
    kind = shown_kind(factory)
    parallel, timeout = getattr(kind, "parallel", "inline"), getattr(kind, "timeout", DEFAULT_TIMEOUT)
    if parallel not in WORKERS:
        raise ValueError(f"`parallel` of {kind} must be one of {', '.join(WORKERS)}, got {parallel!r}.")
    if (seconds := number(timeout)) is None or seconds <= 0:
        raise ValueError(f"`timeout` of {kind} must be a number of seconds, got {timeout!r}.")
    return WORKERS[parallel](factory, seconds)


def close_worker(worker: EnvWorker | TextEnv) -> None:
    """Close an environment; one that raises then is told about."""
    try:
        worker.close()
    except KeyboardInterrupt:
        raise
    except BaseException:
        logger.warning("An environment could not be closed.", exc_info=True)


@contextmanager
def _without_program() -> Iterator[None]:
    """Processes that start inside do not import the program, which may take seconds, and memory, of each of them."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _seconds_until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _run(call: Callable[[], Any], future: Future) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # `sys.exit` too ends its own episode alone
        future.set_exception(error)


def _serve(factory: Callable[[], TextEnv], pipe: Connection) -> None:
    """What a worker's process does: builds the environment, then answers calls until it is told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes it
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        try:
            env = factory()
        except BaseException as error:
            pipe.send_bytes(_raised(error))
            return
        pipe.send_bytes(pickle.dumps((True, None)))
        try:
            while (call := pickle.loads(pipe.recv_bytes())) is not None:
                pipe.send_bytes(_answer(env, *call))
        finally:
            env.close()


def _answer(env: TextEnv, method: str, args: tuple, kwargs: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps((True, portable(getattr(env, method)(*args, **kwargs))))
    except BaseException as error:  # of an answer that cannot be pickled too
        return _raised(error)


def _raised(error: BaseException) -> bytes:
    return pickle.dumps((False, (_said(error), "".join(traceback.format_exception(error)))))
