"""What can still be said of episodes that are no longer open."""

from __future__ import annotations

from collections import OrderedDict

from agent.journal import Journal
from agent.ledger import EpisodeRow, EpisodeState
from agent.process.shown import printable
from agent.recovery import RESTART_REASON
from agent.server.permissions import check_episode_owner
from agent.wire.errors import WireError
from agent.wire.messages import EpisodeSealed

REMEMBERED = 4096  # answered without a look into the ledger


class PastEpisodes:
    """The ends of sealed episodes, also of those sealed before this server started.

    They are told to the client that opened the episode, as all of an open one is, and to nobody
    else: forbidden. Of an episode that was opened before the ledger kept owners nobody with a key
    is told anything: unknown_episode, upon which a client goes on with another one.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._ends: OrderedDict[str, tuple[str, EpisodeSealed]] = OrderedDict()  # with the owner

    def remember(self, end: EpisodeSealed, owner: str) -> None:
        """Keeps the answer for repeats of the question."""
        self._ends[end.episode_id] = owner, end
        if len(self._ends) > REMEMBERED:
            self._ends.popitem(last=False)

    def end_of(self, episode_id: str, sender: str) -> EpisodeSealed:
        """The answer to a repeated end. Raises WireError("unknown_episode", "forbidden")."""
        if episode_id in self._ends:
            owner, end = self._ends[episode_id]
            check_episode_owner(episode_id, owner, sender)
            return end
        row = self._row(episode_id, sender)
        if row is None or row.state not in (EpisodeState.SEALED, EpisodeState.ACKED):
            raise _unknown(episode_id)
        return EpisodeSealed(episode_id, row.outcome, row.counted)

    def why_gone(self, episode_id: str, sender: str) -> WireError:
        """Why an observation for this episode cannot be answered.

        Raises WireError("unknown_episode", "forbidden") if `sender` must not even know that.
        """
        row = self._row(episode_id, sender)
        if row is None:
            return _unknown(episode_id)
        if row.reason == RESTART_REASON:
            return WireError("server_restarted", f"episode {episode_id} was aborted by a restart")
        what = f"has ended: {row.outcome}, {printable(row.reason)}" if row.outcome else "is ending"
        return WireError("unknown_episode", f"episode {episode_id} {what}")

    def _row(self, episode_id: str, sender: str) -> EpisodeRow | None:
        row = self._journal.row(episode_id)
        if row is None:
            return None
        owner = self._journal.owner(episode_id)
        if owner is not None:
            check_episode_owner(episode_id, owner, sender)
        elif sender:
            raise _unknown(episode_id)
        return row


def _unknown(episode_id: str) -> WireError:
    return WireError("unknown_episode", f"episode {episode_id!r:.60} is not known")
