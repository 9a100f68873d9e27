"""Success once, where an episode ends, against success at the horizon's end."""

from __future__ import annotations

from itertools import chain, repeat

import numpy as np
import pytest
from scripted_server import CHUNK_STEPS, drive, make_lease

from agent.wire.messages import (
    Act,
    Chunk,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStarted,
    SlotLease,
)
from sim_bridge.gl import select_backend
from sim_bridge.lane import Lane
from sim_bridge.player import Player
from sim_bridge.robot import Suite
from sim_bridge.tabletop.body import TabletopBody, TabletopSuite
from sim_bridge.tabletop.expert import expert_action
from sim_bridge.toy import ToySuite

SOLVED_AT = 3  # step after which `drive` has solved a toy task
HORIZON = 8


def play(suite: Suite, stop_at_success: bool, chunks: list[np.ndarray]) -> tuple[EpisodeEnd, str]:
    """One episode of `HORIZON` steps; the end that was asked for, and the outcome in the log."""
    lane = Lane(Player(suite, stop_at_success), "sim-0", "instance")
    lane.take(make_lease(0, horizon_steps=HORIZON), suite.cameras)
    lane.started(EpisodeStarted("episode", "base"))
    asked = lane.advance()
    for step_index, actions_KA in enumerate(chunks):
        assert isinstance(asked, Act)
        lane.receive_chunk(Chunk("episode", step_index, actions_KA, "base"), actions_KA.shape)
        asked = lane.advance()
        if isinstance(asked, EpisodeEnd):
            break
    assert isinstance(asked, EpisodeEnd)
    return asked, lane.sealed(EpisodeSealed("episode", asked.outcome, True)).outcome


@pytest.mark.parametrize(
    ("stop_at_success", "then", "expected"),
    [
        (True, -1.0, ("success", SOLVED_AT, "")),
        (False, -1.0, ("timeout", HORIZON, f"success once, at step {SOLVED_AT}")),
        (False, 1.0, ("success", HORIZON, "")),
    ],
)
def test_what_counts_is_the_first_success_or_the_last_step(
    stop_at_success: bool, then: float, expected: tuple[str, int, str]
) -> None:
    there = drive(make_lease(0), 0)
    end, logged = play(ToySuite(), stop_at_success, [there, then * there])
    assert (end.outcome, end.steps, end.reason) == expected
    assert logged == expected[0]
    assert list(end.executed) == ([1, 1, 1, 0] if stop_at_success else [1] * CHUNK_STEPS)


def test_an_episode_that_never_succeeds_is_a_timeout_either_way() -> None:
    away = -drive(make_lease(0), 0)
    for stop_at_success in (True, False):
        end, _ = play(ToySuite(), stop_at_success, [away, away])
        assert (end.outcome, end.steps, end.reason) == ("timeout", HORIZON, "")


def test_a_tabletop_button_springs_back() -> None:
    """Pressed, then let go: success once, not at the end."""
    suite = TabletopSuite(64)
    lease = SlotLease(
        "order/0#0", "tabletop", "button_press", "press the button", "eval", 0, 60, "eval", "base",
        30.0,
    )  # fmt: skip
    player = Player(suite, stop_at_success=False)
    player.reset(lease)
    body = player._the_body()
    assert isinstance(body, TabletopBody)
    solved = 0
    for _ in range(lease.horizon_steps):
        played = player.play(expert_action(body.env)[None].astype(np.float32), 1)
        assert not played.over
        solved += played.first_success
        if solved:
            break
    assert body.success
    up_KA = np.zeros((12, 7), np.float32)
    up_KA[:, 2] = 1.0
    played = player.play(up_KA, len(up_KA))
    assert (played.success, played.over, played.steps) == (False, False, len(up_KA))
    assert body.env.success  # in this episode it had succeeded
    player.close()
    suite.close()


@pytest.mark.slow
def test_a_libero_scene_goes_on_after_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own predicate, made to hold at the second step alone."""
    select_backend()
    from sim_bridge.libero.body import LiberoBody, LiberoSuite

    suite = LiberoSuite("libero_spatial", 64, "disjoint", "fast")
    lease = SlotLease(
        "order/0#0", suite.name, suite.tasks[0], "", "eval", 0, 4, "eval", "base", 30.0
    )
    still_KA = np.zeros((4, 7), np.float32)
    expected = {True: (True, True, 2, 2), False: (False, False, 4, 2)}
    player = Player(suite)
    player.reset(lease)
    body = player._the_body()
    assert isinstance(body, LiberoBody)
    for stop_at_success, found in expected.items():
        monkeypatch.setattr(player, "_stop_at_success", stop_at_success)
        player.reset(lease)
        held = chain([False, True], repeat(False))
        monkeypatch.setattr(body.env.robosuite, "_check_success", held.__next__)
        played = player.play(still_KA, len(still_KA))
        assert (played.success, played.over, played.steps, played.first_success) == found
    player.close()
