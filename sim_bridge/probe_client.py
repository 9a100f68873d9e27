"""The probe: it measures what a robot would notice of an adapter swap.

The log shows the longest gap between replies and the requests that were never answered. The probe
plays no body: it shows the policy plain images of random colour (so that they are cheap to keep)
and ends its episodes as aborted, so that they are neither trained nor counted.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agent.process.clock import unix_s
from agent.process.shown import complain
from agent.wire.messages import (
    Act,
    Chunk,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    EpisodeStarted,
    Fault,
    Hello,
    Outcome,
    Welcome,
)
from sim_bridge.client import RequestTable
from sim_bridge.log import open_lines

CHUNKS_PER_EPISODE = 50
WAITING_MAX_BYTES = 16 << 20  # of lines that the disk does not take: hours of asking
PAUSE_S = 0.5  # after a refusal
WAIT_S = 0.1  # between two looks at the stop flag
STOP_LIMIT_S = 1.0  # for the answers to the last requests when the probe stops
KEY = "probe"  # of its one open request


class ProbeLog:
    """`probe.jsonl`: one line per request, written when it was answered or given up.

    Fields: event (the request's type), unix_s (of the answer), elapsed_s (since first asked), sent
    (how often it went out), episode_id, step_index (-1 but for acts), version (acts: the adapter
    that answered), error ("" when answered as asked, "unanswered" when the probe stopped first).
    """

    def __init__(self, path: Path) -> None:
        """Appends to `path`. Raises ConfigError, StorageError when it cannot be written."""
        self._file = open_lines(path, ("event", "unix_s", "elapsed_s"), is_synced=False)
        self._path, self._left_out = path, 0

    def write(self, request: object, reply: object, elapsed_s: float, sent: int) -> None:
        """Appends the line of one request; `reply` None: it was given up.

        A disk that takes nothing is no reason to stop asking: up to WAITING_MAX_BYTES wait for it.
        Raises StorageError for what time does not mend.
        """
        line = {
            "event": type(request).__name__,
            "unix_s": unix_s(),
            "elapsed_s": elapsed_s,
            "sent": sent,
            "episode_id": getattr(request, "episode_id", getattr(reply, "episode_id", "")),
            "step_index": getattr(request, "step_index", -1),
            "version": reply.version if isinstance(reply, Chunk) else "",
            "error": _error_of(reply),
        }
        if self._file.waiting_bytes < WAITING_MAX_BYTES:
            self._file.append((json.dumps(line, separators=(",", ":")) + "\n").encode())
        else:
            self._left_out += 1
        if self._file.settle() and self._left_out:
            complain("probe", f"{self._path}: {self._left_out} lines were left out meanwhile")
            self._left_out = 0

    def close(self) -> None:
        """Writes what waits and closes the file. Raises StorageError if that is lost."""
        self._file.close()


class Probe:
    """Asks for a chunk `rate_hz` times a second, one request at a time."""

    def __init__(
        self, requests: RequestTable, log: ProbeLog, client_id: str, task: str, rate_hz: float
    ) -> None:
        self._requests = requests
        self._log = log
        self._client_id = client_id
        self._task = task
        self._period_s = 1.0 / rate_hz
        self._rng = np.random.default_rng(0)
        self._stopping: Callable[[], bool] = lambda: False

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Runs episodes of `CHUNKS_PER_EPISODE` chunks until `should_stop`."""
        self._stopping = should_stop
        self._give_up_s = float("inf")
        while not should_stop():
            welcome = self._ask(Hello(self._client_id, "sim_bridge.probe"))
            while isinstance(welcome, Welcome) and self._run_episode(welcome):
                pass
            self._sleep(PAUSE_S)

    def _run_episode(self, welcome: Welcome) -> bool:
        """One episode; False when the server refused something or the probe is to stop."""
        start_key = uuid.uuid4().hex
        started = self._ask(EpisodeStart(self._client_id, start_key, task=self._task))
        if not isinstance(started, EpisodeStarted):
            return False
        episode_id = started.episode_id
        executed_K = np.zeros(0, np.uint8)
        next_at_s = time.monotonic()
        for step_index in range(CHUNKS_PER_EPISODE):
            self._sleep(next_at_s - time.monotonic())
            next_at_s = max(next_at_s + self._period_s, time.monotonic())
            if self._stopping():
                break
            if not isinstance(
                self._ask(self._act(welcome, episode_id, step_index, executed_K)), Chunk
            ):
                break
            executed_K = np.zeros(welcome.chunk_steps, np.uint8)
        end = EpisodeEnd(episode_id, Outcome.ABORTED, 0, executed_K, "a probe plays no body")
        return isinstance(self._ask(end), EpisodeSealed) and not self._stopping()

    def _act(
        self, welcome: Welcome, episode_id: str, step_index: int, executed_K: np.ndarray
    ) -> Act:
        images = {
            camera: np.full(shape, self._rng.integers(0, 256, 3), np.uint8)
            for camera, shape in welcome.images.items()
        }
        proprio = np.zeros(welcome.proprio_dim, np.float32)
        return Act(episode_id, step_index, images, proprio, executed_K)

    def _ask(self, message: object) -> object:
        """The reply, which may be a Fault; None when the probe stopped before it came."""
        asked_s = time.monotonic()
        self._requests.ask(KEY, message)
        while time.monotonic() < self._give_up_s:
            for answer in self._requests.receive(WAIT_S):
                self._log.write(message, answer.reply, answer.elapsed_s, answer.sent)
                return answer.reply
            if self._stopping():
                # Once for the last requests together: a silent server may leave two unanswered.
                self._give_up_s = min(self._give_up_s, time.monotonic() + STOP_LIMIT_S)
        self._log.write(message, None, time.monotonic() - asked_s, 0)
        self._requests.cancel(KEY)
        return None

    def _sleep(self, duration_s: float) -> None:
        """Sleeps, but no longer than until the probe is to stop."""
        until_s = time.monotonic() + duration_s
        while not self._stopping() and (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, WAIT_S))


def _error_of(reply: object) -> str:
    if reply is None:
        return "unanswered"
    return f"{reply.code}: {reply.message}" if isinstance(reply, Fault) else ""
