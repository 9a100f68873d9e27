"""The player's stopwatch, on a clock that only the body moves."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_server import make_lease

from sim_bridge import player
from sim_bridge.player import BodyFailed, Player
from sim_bridge.robot import Observation
from sim_bridge.toy import ACTION_DIM, ToyBody, ToySuite

RESET_S, OBSERVE_S, APPLY_S = 100.0, 10.0, 1.0


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class SlowBody(ToyBody):
    def __init__(self, task: str, clock: Clock) -> None:
        super().__init__(task)
        self._clock = clock

    def reset(self, split: str, init_state: int) -> None:
        self._clock.now_s += RESET_S
        super().reset(split, init_state)

    def observe(self) -> Observation:
        self._clock.now_s += OBSERVE_S
        return super().observe()

    def apply(self, action_A: np.ndarray) -> bool:
        self._clock.now_s += APPLY_S
        if not action_A.any():
            raise ZeroDivisionError("made to fail")
        return super().apply(action_A)


class SlowSuite(ToySuite):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def make_body(self, task: str) -> SlowBody:
        return SlowBody(task, self._clock)


@pytest.fixture
def slow_player(monkeypatch: pytest.MonkeyPatch) -> Player:
    clock = Clock()
    monkeypatch.setattr(player, "time", clock)
    return Player(SlowSuite(clock))


def test_time_is_counted_where_it_was_spent(slow_player: Player) -> None:
    sideways_KA = np.full((4, ACTION_DIM), 0.01, np.float32)
    for _ in range(2):
        slow_player.reset(make_lease(0))
        slow_player.observe()
        slow_player.play(sideways_KA, budget_steps=3)
        slow_player.observe()
    assert slow_player.steps == 6
    assert slow_player.spent_s == {
        "reset": 2 * RESET_S,
        "observe": 4 * OBSERVE_S,
        "step": 6 * APPLY_S,
    }


def test_time_of_a_body_that_failed_counts_too(slow_player: Player) -> None:
    slow_player.reset(make_lease(0))
    with pytest.raises(BodyFailed):
        slow_player.play(np.zeros((4, ACTION_DIM), np.float32), budget_steps=4)
    assert slow_player.spent_s["step"] == APPLY_S
