"""The error about one episode that the others need not suffer from."""

from agent.wire.errors import PerennialError


class UnusableEpisode(PerennialError):
    """An episode that cannot be trained on, whatever is done; the message says why."""

    def __init__(self, episode_id: str, reason: str) -> None:
        super().__init__(f"episode {episode_id}: {reason}")
        self.episode_id, self.reason = episode_id, reason
