"""What can still be said of episodes that are no longer open."""

from __future__ import annotations

from collections import OrderedDict

from agent.journal import Journal
from agent.ledger import EpisodeState
from agent.recovery import RESTART_REASON
from agent.wire.errors import WireError
from agent.wire.messages import EpisodeSealed

REMEMBERED = 4096  # answered without a look into the ledger


class PastEpisodes:
    """The ends of sealed episodes, also of those sealed before this server started."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._ends: OrderedDict[str, EpisodeSealed] = OrderedDict()

    def remember(self, end: EpisodeSealed) -> None:
        """Keeps the answer for repeats of the question."""
        self._ends[end.episode_id] = end
        if len(self._ends) > REMEMBERED:
            self._ends.popitem(last=False)

    def end_of(self, episode_id: str) -> EpisodeSealed:
        """The answer to a repeated end. Raises WireError("unknown_episode")."""
        if episode_id in self._ends:
            return self._ends[episode_id]
        row = self._journal.row(episode_id)
        if row is None or row.state not in (EpisodeState.SEALED, EpisodeState.ACKED):
            raise WireError("unknown_episode", f"episode {episode_id!r:.60} is not known")
        return EpisodeSealed(episode_id, row.outcome, row.counted)

    def why_gone(self, episode_id: str) -> WireError:
        """Why an observation for this episode cannot be answered."""
        row = self._journal.row(episode_id)
        if row is not None and row.reason == RESTART_REASON:
            return WireError("server_restarted", f"episode {episode_id} was aborted by a restart")
        what = f"has ended: {row.outcome}, {row.reason}" if row else "is not known"
        return WireError("unknown_episode", f"episode {episode_id!r:.60} {what}")
