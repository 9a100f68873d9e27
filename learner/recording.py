"""Recorded episodes step by step: what was executed, and what had been seen before it.

The policy sees once a chunk; an executed step therefore belongs to the observation of its chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.episode import Episode, EpisodeCorrupt, read_episode
from agent.recovery import QUARANTINE_NAME
from agent.wire.errors import PerennialError
from agent.wire.messages import Executed, Outcome


class RecordingError(PerennialError):
    """A folder from which no episode can be taken."""


class LeftOut(PerennialError):
    """This episode is not for export; the message says why, the same for all of its kind."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One episode of N executed steps.

    actions_NA: f32, as the policy answered. executed_N: `Executed` codes. chunk_N: index into
    `episode.chunks`. age_N: steps since that chunk's observation.
    """

    episode: Episode
    actions_NA: np.ndarray
    executed_N: np.ndarray
    chunk_N: np.ndarray
    age_N: np.ndarray

    def __len__(self) -> int:
        return len(self.chunk_N)


def episode_paths(folder: Path) -> list[Path]:
    """Every episode file below `folder`, oldest first, each once, none that was put aside.

    Agent and learner of one run both keep a file of an episode for a while.
    """
    paths = {
        path.name: path
        for path in sorted(folder.rglob("*.mcap"))
        if QUARANTINE_NAME not in path.parts
    }
    return [paths[name] for name in sorted(paths)]  # an id begins with its time


def read_recording(path: Path) -> Recording:
    """Raises LeftOut for an episode without steps or pictures, or aborted, or unreadable: still
    open, damaged, of another version.
    """
    try:
        episode = read_episode(path)
    except EpisodeCorrupt as error:
        problem = str(error).removeprefix(f"{path}: ")
        raise LeftOut(f"unreadable ({problem})") from error
    if episode.end.outcome == Outcome.ABORTED:
        raise LeftOut("aborted")
    executed_TK = episode.end.executed_TK
    chunk_N, age_N = np.nonzero(executed_TK != Executed.NOT_RUN)
    if not len(chunk_N):
        raise LeftOut("without a step")
    if not all(chunk.images for chunk in episode.chunks):
        raise LeftOut("whose pictures were not kept")
    actions_TKA = np.stack([chunk.actions_KA for chunk in episode.chunks])
    return Recording(
        episode, actions_TKA[chunk_N, age_N], executed_TK[chunk_N, age_N], chunk_N, age_N
    )
