"""Small environments for tests."""

import dataclasses
import os
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
