"""A robot that lives recorded episodes again: what was seen comes back, what is done is compared.

For a dry run of server, network and runtime with real pictures, before anything moves.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from agent.episode import Episode, EpisodeCorrupt, read_episode
from agent.wire.errors import ConfigError
from agent.wire.messages import Executed, Outcome
from sim_bridge.robot import BridgeError, Observation

log = logging.getLogger(__name__)


class ReplayRobot:
    """Plays the episodes of a folder in the order of their ids, round and round.

    Its observations are the recorded ones, one a chunk, whatever it is told to do; each comes back
    after as many actions as had been executed when it was taken.
    """

    def __init__(self, folder: Path) -> None:
        """folder: with .mcap files below it. Raises ConfigError if there are none."""
        self._paths = sorted(folder.rglob("*.mcap"), key=lambda path: path.name)
        if not self._paths:
            raise ConfigError(
                f"replay_dir: no episode (.mcap) in '{folder}'; name an agent's or learner's folder"
            )
        self._folder = folder
        self._next = 0
        self._episode: Episode | None = None
        self._actions_NA = np.zeros((0, 0), np.float32)
        self._seen_at_T = np.zeros(0, np.int64)
        self._step = self._replayed = self._compared = 0
        self._difference_sum = self._difference_max = 0.0

    def reset(self, task: str, split: str, init_state: int) -> None:
        """Takes the next episode of `task` that has pictures; split and init state do not matter.

        Raises BridgeError if there is none.
        """
        others: set[str] = set()
        for _ in self._paths:
            path = self._paths[self._next]
            self._next = (self._next + 1) % len(self._paths)
            episode = _read(path)
            if episode is None or not all(chunk.images for chunk in episode.chunks):
                continue
            if episode.meta.task == task and episode.end.executed_TK.any():
                self._take(episode)
                return
            others.add(episode.meta.task)
        raise BridgeError(
            f"replay_dir: no whole episode of '{task}' with its images below '{self._folder}'; "
            f"there are some of: {', '.join(sorted(others)) or 'no task'}"
        )

    def observe(self) -> Observation:
        """What had been seen last when so many actions had been executed."""
        assert self._episode is not None, "before reset"
        index = int(np.searchsorted(self._seen_at_T, self._step, side="right")) - 1
        chunk = self._episode.chunks[max(0, index)]
        return Observation(dict(chunk.images), chunk.proprio)

    def position(self) -> np.ndarray:
        """Not recorded."""
        return np.full(3, np.nan)

    def apply(self, action_A: np.ndarray) -> None:
        """Compares the action with the one that was sent then."""
        recorded_A = self._actions_NA[self._step]
        if action_A.shape != recorded_A.shape:
            raise BridgeError(
                f"action: {len(action_A)} numbers, the recording has {len(recorded_A)}"
            )
        difference = np.abs(action_A - recorded_A)
        self._difference_sum += float(difference.mean())
        self._difference_max = max(self._difference_max, float(difference.max()))
        self._compared += 1
        self._step += 1

    def hold(self) -> None:
        """The recording waits."""

    def outcome(self) -> Outcome | None:
        """Aborted, once as many actions were executed as then: nothing was measured.

        The recorded outcome is that of the actions then; it must be in no success rate again.
        """
        if self._step < len(self._actions_NA):
            return None
        self._replayed += 1
        return Outcome.ABORTED

    def close(self) -> None:
        """Nothing is held."""

    def summary(self) -> dict[str, object]:
        """Episodes replayed to their end, and how far actions were from the recorded ones."""
        return {
            "replayed": self._replayed,
            "difference_mean": self._difference_sum / max(1, self._compared),
            "difference_max": self._difference_max,
        }

    def _take(self, episode: Episode) -> None:
        played_TK = episode.end.executed_TK != Executed.NOT_RUN
        actions_TKA = np.stack([chunk.actions_KA for chunk in episode.chunks])
        self._episode, self._step = episode, 0
        self._actions_NA = actions_TKA[played_TK]
        self._seen_at_T = _steps_when_seen(played_TK)


def _read(path: Path) -> Episode | None:
    """None for a file that is not whole, or no longer there: its agent may be at work on it."""
    try:
        return read_episode(path)
    except (EpisodeCorrupt, FileNotFoundError) as error:
        log.warning("not replayed: %s", error)
        return None


def _steps_when_seen(played_TK: np.ndarray) -> np.ndarray:
    """i64[T]: how many actions had been executed when each observation was taken.

    A chunk's first action is meant for that moment. What was not executed before its first executed
    action belongs to the time that the answer took, in which the chunk before went on.
    """
    before_T = np.cumsum(played_TK.sum(axis=1)) - played_TK.sum(axis=1)
    skipped_T = np.where(played_TK.any(axis=1), played_TK.argmax(axis=1), 0)
    return np.maximum.accumulate(np.maximum(0, before_T - skipped_T))
