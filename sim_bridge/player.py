"""Drives one body: makes it, resets it, plays chunks on it; its failures become one type."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from agent.wire.messages import Executed, SlotLease
from sim_bridge.robot import Body, BridgeError, Observation, Suite, clip_action

T = TypeVar("T")


class BodyFailed(BridgeError):
    """The body raised; its episode is aborted and the next one gets a new body."""


@dataclass(frozen=True, slots=True)
class Played:
    """What became of a chunk. executed_K: u8[K] `Executed` codes; steps: actions executed.

    first_success: after how many of these steps the predicate held first; 0 if it never did.
    """

    executed_K: np.ndarray
    steps: int
    success: bool  # the predicate holds at the end
    over: bool  # success, or the body, ended the episode
    first_success: int


class Player:
    """The body of one lane, made when its task first comes up and after each failure."""

    def __init__(self, suite: Suite, stop_at_success: bool = True) -> None:
        """stop_at_success: whether an episode ends with the first step that solves its task."""
        self.spent_s: defaultdict[str, float] = defaultdict(float)  # in the body
        self.steps = 0
        self._suite = suite
        self._stop_at_success = stop_at_success
        self._body: Body | None = None
        self._task = ""

    def reset(self, lease: SlotLease) -> None:
        """Puts the body into the lease's init state. Raises BodyFailed."""
        self._guard("reset", lambda: self._reset(lease))

    def observe(self) -> Observation:
        """What the policy needs to see. Raises BodyFailed."""
        return self._guard("observe", self._the_body().observe)

    def play(self, actions_KA: np.ndarray, budget_steps: int) -> Played:
        """Executes a chunk until it is used up, the episode is over, or `budget_steps` are done.

        Actions are clipped to the body's limits; those that changed are coded LIMITED, the ones
        not executed NOT_RUN. Raises BodyFailed.
        """
        played = self._guard("step", lambda: self._play(actions_KA, budget_steps))
        self.steps += played.steps
        return played

    def close(self) -> None:
        """Closes the body, if there is one. Raises BodyFailed."""
        body, self._body = self._body, None
        if body is not None:
            self._guard("close", body.close)

    def _reset(self, lease: SlotLease) -> None:
        if self._body is None or self._task != lease.task:
            if self._body is not None:
                self._body.close()
            self._body = self._suite.make_body(lease.task)
            self._task = lease.task
        self._body.reset(lease.split, lease.init_state)

    def _play(self, actions_KA: np.ndarray, budget_steps: int) -> Played:
        body = self._the_body()
        executed_K = np.full(len(actions_KA), Executed.NOT_RUN, np.uint8)
        over, steps, first_success = False, 0, 0
        for k, action_A in enumerate(actions_KA[:budget_steps]):
            clipped_A, limited = clip_action(body, action_A)
            over = body.apply(clipped_A)
            executed_K[k] = Executed.LIMITED if limited else Executed.RUN
            steps += 1
            if body.success:
                first_success = first_success or steps
                over = over or self._stop_at_success
            if over:
                break
        return Played(executed_K, steps, body.success, over, first_success)

    def _the_body(self) -> Body:
        if self._body is None:
            raise BodyFailed("observe or play before reset")
        return self._body

    def _guard(self, doing: str, call: Callable[[], T]) -> T:
        """Calls and counts the time, whatever comes of it.

        The one place where a body's exception, whatever it is, becomes BodyFailed.
        """
        started_s = time.perf_counter()
        try:
            return call()
        except Exception as error:
            self._body = None  # its state is unknown, so it is not even closed
            raise BodyFailed(f"{doing}: {type(error).__name__}: {error}") from error
        finally:
            self.spent_s[doing] += time.perf_counter() - started_s
