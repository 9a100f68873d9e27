"""The resets of a published evaluation, played in any order.

An init state holds the objects, the arm and the drawers, but not where cabinets, stoves and racks
stand: `reset` draws that from numpy's global random numbers, up to 2 cm apart. Published code seeds
once per task and resets once per episode, so episode k has what is left of the stream after k
resets: the same in every evaluation, whatever the policy does, for nothing else draws from it.

Workers lease episodes in any order. What is kept is therefore the generator's state before each
reset, filled in as far as it is asked for: an environment plays each of a task's 50 resets at most
once more than it would otherwise, 0.02 to 0.15 s each. A table of poses would have to be shipped
for every suite, and could disagree with the simulator; playing all k resets before each episode
would take as long as many an episode.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

PUBLISHED_SEED = 0


class PublishedResets:
    """The resets of one environment that compiles its model once."""

    def __init__(self, control: Any) -> None:
        """control: the distribution's, fresh. Seeds numpy's global random numbers."""
        self._control = control
        # How far drawers and knobs are turned: these are drawn before the fixtures' poses are.
        self._initializers = list(control.env.object_property_initializers)
        control.seed(PUBLISHED_SEED)
        self._before = [np.random.get_state()]  # each reset, as far as the stream was played

    def reset(self, episode: int) -> None:
        """Draw the scene of episode `episode` of a loop that seeds once."""
        for each in range(min(episode, len(self._before) - 1), episode + 1):
            np.random.set_state(self._before[each])
            self._reset(each)
            if len(self._before) == each + 1:
                self._before.append(np.random.get_state())

    def reset_seeded(self, episode: int, seed: int = PUBLISHED_SEED) -> None:
        """Draw the scene of episode `episode` of a loop that seeds before every reset."""
        self._control.seed(seed)
        self._reset(episode)

    def _reset(self, episode: int) -> None:
        # The distribution compiles its model before every reset and once before the first, and
        # never empties this list when it does: every reset draws more of them than the last.
        self._control.env.object_property_initializers[:] = self._initializers * (episode + 2)
        with quiet():
            self._control.reset()


@contextmanager
def quiet() -> Iterator[None]:
    """The distribution prints what is no news; a worker's stdout carries its summary alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
