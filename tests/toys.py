"""Small environments for tests."""

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import stat
import sys
import time

from sdar_trl.envs import Step


class CountingEnv:
    """Ends after `length` turns; pays for how often the response holds an `e`, so that rewards differ."""

    def reset(self, *, length: int, fails_at: int | None = None, **_) -> str:
        self.length, self.fails_at, self.turn = length, fails_at, 0
        if fails_at == 0:
            raise RuntimeError("reset failed")
        return f"count to {length}"

    def step(self, response: str) -> Step:
        self.turn += 1
        if self.turn == self.fails_at:
            raise RuntimeError("step failed")
        done = self.turn == self.length
        reward = float(response.count("e"))
        info = {"success": reward > 0} if done else {}
        return Step(f"now at {self.turn}", reward, done, False, bool(response), info)

    def close(self) -> None:
        pass


class CalculatorEnv:
    """TRL's own kind of environment: its methods are tools."""

    def reset(self, **_) -> str:
        self.calls = 0
        return " use the tool."

    def add(self, a: int, b: int) -> int:
        """
        Adds two numbers.

        Args:
            a: First number.
            b: Second number.
        """
        self.calls += 1
        return a + b

    def get_reward(self) -> float:
        return float(self.calls)


class ProcessEnv(CountingEnv):
    """Runs in a process of its own, where a task can have it hang, die or fail to be built; says which process."""

    parallel = "process"
    timeout = 20.0

    def __init__(self, broken: bool = False):
        if broken:
            raise FileNotFoundError("no game files")

    def reset(self, *, dies_at: int | None = None, hangs_at: int | None = None, **task) -> str:
        self.dies_at, self.hangs_at = dies_at, hangs_at
        return super().reset(**task)

    def step(self, response: str) -> Step:
        step = super().step(response)
        if self.turn == self.dies_at:
            os._exit(1)
        if self.turn == self.hangs_at:
            time.sleep(600)
        return dataclasses.replace(step, info={**step.info, "pid": os.getpid(), "torch": "torch" in sys.modules})


class HastyProcessEnv(ProcessEnv):
    timeout = 3.0


class ThreadEnv(ProcessEnv):
    """Waits as for a network, in a thread."""

    parallel = "thread"
    timeout = 2.0

    def step(self, response: str) -> Step:
        time.sleep(0.3)
        return super().step(response)


class Scripted:
    """A backend of one process that samples what a function says."""

    def __init__(self, generate):
        self.generate = generate

    def any_running(self, count: int) -> bool:
        return count > 0

    def end(self) -> None:
        pass


class OneByOne:
    """A streaming backend: one response after the other, by a function from ids and seed, in an order of its own."""

    def __init__(self, generate, order: int = 0):
        self.generate, self.order = generate, random.Random(order)
        self.asked, self.log = [], []

    def begin(self) -> None:
        self.log.append("begin")

    def submit(self, key, ids, seed) -> None:
        self.asked.append((key, list(ids), tuple(seed)))

    def collect(self) -> list:
        key, ids, seed = self.asked.pop(self.order.randrange(len(self.asked)))
        self.log.append(seed)
        return [(key, *self.generate(ids, seed))]

    def end(self) -> None:
        self.asked.clear()
        self.log.append("end")


class Unshowable(BaseException):
    """No error of Python's own kind, as that of a library in another language; and it cannot be printed."""

    def __repr__(self) -> str:
        raise ValueError("no words")

    __str__ = __repr__


class Unreadable:
    """Can be sent, and not be read."""

    def __reduce__(self):
        return Unshowable.__repr__, (None,)


def exit_at_once(signal_number: int | None = None) -> None:
    os._exit(1) if signal_number is None else os.kill(os.getpid(), signal_number)


def write_to_sockets(data: bytes) -> None:
    """Write where answers are written, as an environment does that holds a wrong file descriptor."""
    for number in range(3, 256):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, data)


def raising(error: BaseException):
    def fault(answer):
        raise error

    return fault


FAULTS = {
    "raises": raising(RuntimeError("no network")),
    "raises at length": raising(ValueError("2 errors\n  see\n  a page")),
    "exits": raising(SystemExit(1)),
    "is cancelled": raising(asyncio.CancelledError()),
    "panics": raising(Unshowable()),
    "answers with nonsense": lambda answer: object(),
    "answers with an endless number": lambda answer: 10**5000,
}
"""What an environment does in place of its answer, by name."""

PROCESS_FAULTS = {
    "dies": lambda answer: exit_at_once(),
    "is killed": lambda answer: exit_at_once(signal.SIGKILL),
    "is stopped": lambda answer: exit_at_once(signal.SIGSTOP),
    "hangs": lambda answer: time.sleep(600),
    "closes its files": lambda answer: os.closerange(3, 256),
    "writes garbage": lambda answer: write_to_sockets(b"\x00\x00\x00\x04junk") or answer,
    "stops in the middle": lambda answer: write_to_sockets(b"\x00\x0f\x00\x00junk") or time.sleep(600),
    "cannot be sent": lambda answer: lambda: None,
    "cannot be read": lambda answer: Unreadable(),
    "loses its own pipe": raising(BrokenPipeError("the game is gone")),
}
"""The same, for an environment in a process of its own."""


class FaultyEnv(CountingEnv):
    """Has the fault that its task names, in the call that it names; in `step` in the second turn, after an odd
    response. It cannot be made while there is a file `broken`."""

    timeout = 2.0

    def __init__(self, broken: str = ""):
        self.fault = None
        if os.path.exists(broken):
            raise ConnectionError("no server")

    def _answer(self, method, answer):
        if self.fault is None or self.method != method:
            return answer
        return {**FAULTS, **PROCESS_FAULTS}[self.fault](answer)

    def reset(self, *, fault: str | None = None, method: str = "step", **task) -> str:
        self.fault, self.method = fault, method
        return self._answer("reset", super().reset(**task))

    def step(self, response: str) -> Step:
        step = super().step(response)
        return self._answer("step", step) if self.turn == 2 and sum(response.encode()) % 2 else step

    def close(self) -> None:
        self._answer("close", None)


class FaultyThreadEnv(FaultyEnv):
    parallel = "thread"


class FaultyProcessEnv(FaultyEnv):
    parallel = "process"
