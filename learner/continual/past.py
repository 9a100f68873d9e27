"""What earlier tasks left in the learner's record: the episodes of a task's last iteration."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.episode import Episode, EpisodeCorrupt, read_episode
from agent.wire.errors import ConfigError
from learner.batch import Samples, Trajectory, build_samples
from learner.store import EpisodeRow, LearnerStore

log = logging.getLogger(__name__)


class Past:
    """Episodes that were trained on, read again from the learner's own files.

    Args:
        folder: of the episode files.
        on_read: called before each reading of one.
    """

    def __init__(
        self,
        store: LearnerStore,
        folder: Path,
        cameras: Sequence[str],
        on_read: Callable[[], object] = lambda: None,
    ) -> None:
        self._store, self._folder, self._cameras = store, folder, cameras
        self._on_read = on_read

    def last_rows(self, task_index: int) -> list[EpisodeRow]:
        """The episodes of the task's last update, in slot order; none for a supervised task."""
        rows = self._store.last_episodes(task_index)
        return sorted(rows, key=lambda row: _slot_key(row.slot_id))

    def read_whole(self, rows: Sequence[EpisodeRow]) -> list[Episode]:
        """Those of the episodes that can be read: they were trained on, and cannot be run again.

        Raises:
            ConfigError: a file was deleted.
        """
        episodes = []
        for row in rows:
            try:
                episodes.append(self._read(row))
            except EpisodeCorrupt as error:
                log.error("episode %s is damaged and left out: %s", row.episode_id, error)
        return episodes

    def _read(self, row: EpisodeRow) -> Episode:
        self._on_read()
        path = self._folder / row.file
        if not path.exists():
            raise ConfigError(
                f"{path} is gone, and this continual method needs the last episodes of every task "
                "learned: set keep_used_episodes=true"
            )
        return read_episode(path)

    def last_samples(self, task_index: int) -> Samples | None:
        """The chunks of the task's last episodes, advantages 0; None without any."""
        return self.samples(self.read_whole(self.last_rows(task_index)))

    def samples(self, episodes: Sequence[Episode]) -> Samples | None:
        """The chunks of these episodes, advantages 0; None without any."""
        trajectories = [Trajectory(i, episode, 0.0) for i, episode in enumerate(episodes)]
        return build_samples(trajectories, self._cameras)


def _slot_key(slot_id: str) -> tuple[str | int, ...]:
    """`train/0/12/0/3#2` in numeric order."""
    words = slot_id.replace("#", "/").split("/")
    return tuple(int(word) if word.isdigit() else word for word in words)
