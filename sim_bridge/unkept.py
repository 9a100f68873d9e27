"""What a client tells its people of episodes that the agent acts in and does not keep."""

from __future__ import annotations

import logging

from agent.wire.messages import Chunk, EpisodeSealed, EpisodeStarted

log = logging.getLogger(__name__)


class Unkept:
    """Says once when episodes begin to be lost, and once when a new one is kept again.

    count: how many were lost since the process began.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lost: set[str] = set()  # that are still open here
        self._lasts = False

    def note(self, reply: object) -> None:
        """Takes in any reply."""
        if not isinstance(reply, EpisodeStarted | Chunk | EpisodeSealed):
            return
        if not reply.recorded and reply.episode_id not in self._lost:
            self._lost.add(reply.episode_id)
            self.count += 1
            if not self._lasts:
                self._lasts = True
                log.warning(
                    "the agent acts and does not keep episode %s: it will not be trained on; the "
                    "agent's /readyz and log say why",
                    reply.episode_id,
                )
        elif isinstance(reply, EpisodeStarted) and reply.recorded and self._lasts:
            self._lasts = False
            log.warning("the agent keeps episodes again, from %s on", reply.episode_id)
        if isinstance(reply, EpisodeSealed):
            self._lost.discard(reply.episode_id)
