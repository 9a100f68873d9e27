"""Which action is played when, whatever the delays; and every action's fate is told once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.messages import Executed
from sim_bridge.robot import BridgeError
from sim_bridge.robots.playback import Playback

K, A = 5, 2
CODES = {Executed.RUN, Executed.REPLACED}


def chunk_of(number: int) -> np.ndarray:
    """Action k of chunk `number` is 100 number + k in every dimension."""
    return np.repeat(100.0 * number + np.arange(K, dtype=np.float32)[:, None], A, axis=1)


def run(playback: Playback, delays: list[int], ticks: int) -> tuple[list[float], np.ndarray]:
    """Plays; chunk i is answered `delays[i]` ticks after it was asked for. What was executed at
    each tick (nan: held), and the codes in the order in which they were told.
    """
    executed, told = [], [np.zeros(0, np.uint8)]
    answers: list[tuple[int, int]] = []  # (tick, number)
    asked = 0
    for tick in range(ticks):
        if answers and answers[0][0] <= tick:
            playback.receive(tick, chunk_of(answers.pop(0)[1]))
        if asked < len(delays) and playback.wants_chunk(tick):
            told.append(playback.take_settled(tick))
            playback.ask(tick)
            answers.append((tick + delays[asked], asked))
            asked += 1
            if answers[0][0] <= tick:
                playback.receive(tick, chunk_of(answers.pop(0)[1]))
        action_A = playback.action(tick)
        executed.append(float("nan") if action_A is None else float(action_A[0]))
        if action_A is not None:
            playback.played(tick, action_A, limited=False)
    for _, number in answers:  # the end waits for what is on its way
        playback.receive(ticks, chunk_of(number))
    told.append(playback.take_all())
    return executed, np.concatenate(told)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, K - 1))
def test_every_action_is_told_of_once_and_as_it_was(delays: list[int], lead: int) -> None:
    playback = Playback(K, lead)
    executed, codes = run(playback, delays, 60)
    answered = len(playback.delays_ticks)
    assert len(codes) == K * answered
    played = [int(value) for value in executed if not np.isnan(value)]
    assert len(set(played)) == len(played), "no action is played twice"
    told = [100 * (i // K) + i % K for i, code in enumerate(codes) if code in CODES]
    assert told == sorted(played) == played


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, K - 1), st.integers(0, 9)
)
def test_an_action_is_for_so_many_actions_after_its_observation(
    delays: list[int], lead: int, limit: int
) -> None:
    playback = Playback(K, lead, stale_ticks=limit)
    asked_ticks: list[int] = []
    ask = playback.ask
    playback.ask = lambda tick: (asked_ticks.append(tick), ask(tick))[1]  # type: ignore[method-assign]
    executed, _ = run(playback, delays, 90)
    is_played = ~np.isnan(executed)
    for tick in np.flatnonzero(is_played):
        number, k = divmod(int(executed[tick]), 100)
        assert is_played[asked_ticks[number] : tick].sum() == k, "it stood still at other ticks"
    stale = [i for i, delay in enumerate(playback.delays_ticks) if delay > limit]
    assert playback.stale == len(stale)
    assert not {int(v) // 100 for v in executed if not np.isnan(v)} & set(stale)


def test_a_robot_goes_on_however_slow_its_server_is() -> None:
    executed, _ = run(Playback(K, lead_ticks=3), [9] * 6, 70)
    played = [int(value) for value in executed if not np.isnan(value)]
    assert played[:K] == [0, 1, 2, 3, 4], "nothing had moved before the first chunk"
    assert played[K:9] == [103, 104, 202, 203]
    assert len(played) == K + 2 + 3 + 2 + 3 + 2


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_without_a_lead_nothing_is_skipped_and_the_robot_waits(delays: list[int]) -> None:
    executed, codes = run(Playback(K), delays, 120)
    assert (codes == Executed.RUN).all()
    expected = []
    for number, delay in enumerate(delays):
        expected += [float("nan")] * delay + [100.0 * number + k for k in range(K)]
    np.testing.assert_array_equal(executed[: len(expected)], expected)
    assert np.isnan(executed[len(expected) :]).all()


def test_a_blended_seam_moves_over_step_by_step_and_is_masked() -> None:
    playback = Playback(K, lead_ticks=4, blend_ticks=2)
    executed, codes = run(playback, [0, 1], 8)
    # Chunk 1 is for ticks 1 to 5 and comes at 2; ticks 2 and 3 are a third and two thirds of it.
    assert executed[:2] == [0.0, 1.0]
    np.testing.assert_allclose(executed[2:4], [2 / 3 * 2 + 101 / 3, 3 / 3 + 102 * 2 / 3])
    assert executed[4:6] == [103.0, 104.0]
    assert codes.tolist() == [1, 1, 0, 0, 0, 0, 3, 3, 1, 1]
    assert playback.seam_jumps == [100.0]


@pytest.mark.parametrize(("lead", "blend"), [(K, 0), (-1, 0), (2, 3), (2, -1)])
def test_settings_that_cannot_work_are_refused(lead: int, blend: int) -> None:
    with pytest.raises(BridgeError, match="_ticks"):
        Playback(K, lead, blend)


def test_a_chunk_that_is_played_to_its_end_is_told_of_with_the_next_observation() -> None:
    playback = Playback(K)
    playback.ask(0)
    playback.receive(0, chunk_of(0))
    for tick in range(K):
        assert len(playback.take_settled(tick)) == 0, "still playing"
        playback.played(tick, playback.action(tick), limited=tick == 1)
    assert playback.take_settled(K).tolist() == [1, 2, 1, 1, 1]


def test_after_a_pause_nothing_that_was_planned_is_played_and_all_is_told() -> None:
    playback = Playback(K, lead_ticks=3)
    playback.ask(0)
    playback.receive(0, chunk_of(0))
    for tick in range(2):
        playback.played(tick, playback.action(tick), limited=False)
    playback.ask(2)
    playback.expire()
    assert playback.action(3) is None
    assert not playback.receive(3, chunk_of(1)), "the answer to an observation of before"
    assert playback.action(3) is None
    assert playback.wants_chunk(3)
    assert playback.take_settled(3).tolist() == [1, 1, 0, 0, 0] + [0] * K
    playback.ask(3)
    assert playback.receive(3, chunk_of(2))
    assert playback.action(3).tolist() == [200.0, 200.0]


def test_codes_that_may_not_have_come_shift_no_others() -> None:
    playback = Playback(K)
    playback.ask(0)
    playback.receive(0, chunk_of(0))
    playback.played(0, playback.action(0), limited=False)
    playback.ask(1)
    assert len(playback.take_all()) == 0
