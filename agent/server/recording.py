"""Whether episodes are kept. Acting goes on while they cannot be.

While the disk takes nothing, what is to be written waits for a while, in bounded memory, and no
slot is leased. Then open episodes are given up: robots get their actions as before, are told that
nothing is kept, and such an episode ends as aborted. Once the disk takes something again, new
episodes are kept.
"""

from __future__ import annotations

import logging

from agent.server.core import Core
from agent.server.episodes import Episodes

log = logging.getLogger(__name__)

GRACE_S = 10.0  # in which a passing trouble of the disk costs no episode


class Recording:
    """Looks after the journal's trouble, in the loop's thread."""

    def __init__(self, core: Core, episodes: Episodes) -> None:
        self._core = core
        self._episodes = episodes
        core.metrics.recording.set(1)

    def tick(self, now_s: float) -> None:
        """Gives episodes up where trouble has lasted; goes on recording where it is over."""
        journal, state = self._core.journal, self._core.state
        trouble = journal.trouble
        if trouble is None:
            if state.recording_fault:
                log.warning("episodes are kept again")
            state.recording_fault = ""
        elif state.recording_fault or now_s - trouble.since_s > GRACE_S or journal.is_full:
            self.stop(trouble.text)
        self._core.metrics.recording.set(not state.recording_fault)

    def stop(self, why: str) -> None:
        """Keeps no more of what is open."""
        if not self._core.state.recording_fault:
            log.error("episodes are not kept, robots are served all the same: %s", why)
        self._core.state.recording_fault = f"training data is not kept: {why}"
        self._episodes.stop_recording(why)
