"""A physical robot between episodes: the way home, the person at the terminal, the pictures."""

from __future__ import annotations

import os
import pty
import select

import numpy as np
import pytest

from agent.wire.errors import ConfigError
from sim_bridge.robot import BridgeError
from sim_bridge.robots.pictures import fit_picture
from sim_bridge.robots.rest import Person, move_home


def test_the_way_home_ends_there_and_is_left_at_once_when_the_process_stops() -> None:
    sent: list[np.ndarray] = []
    move_home(np.zeros(2), np.array([1.0, -1.0]), 0.5, sent.append, lambda: False, lambda _s: None)
    assert len(sent) == 10
    assert sent[-1].tolist() == [1.0, -1.0]
    move_home(np.zeros(2), np.ones(2), 0.5, sent.append, lambda: len(sent) == 13, lambda _s: None)
    assert len(sent) == 13


def test_a_person_is_waited_for_until_enter_or_until_the_process_stops() -> None:
    person, terminal = pty.openpty()
    asked = 0

    def write(keys: bytes) -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:
            os.write(person, keys)
        return asked > 3

    try:
        waiting = Person(terminal)
        os.write(person, b"\n")
        assert select.select([terminal], [], [], 10)[0]
        waiting.reset("reach", lambda: write(b"not yet"))
        assert asked == 4, "neither an Enter of before nor a letter is one"
        asked = 0
        waiting.reset("reach", lambda: write(b"\n"))
        assert asked < 4, "Enter"
    finally:
        os.close(person)
        os.close(terminal)


def test_a_person_needs_a_terminal() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(ConfigError, match=r"set rest\.home"):
            Person(reading)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_fitted_picture_keeps_what_each_pixel_covers() -> None:
    halves = np.zeros((6, 8, 3), np.uint8)
    halves[:, 4:] = [250, 100, 7]
    fitted = fit_picture("front", halves, 4)
    np.testing.assert_array_equal(fitted[:, :2], 0)
    assert (fitted[:, 2:] == [250, 100, 7]).all()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    np.testing.assert_allclose(
        fit_picture("front", noise, 8).mean((0, 1)), noise.mean((0, 1)), atol=0.5
    )
    np.testing.assert_array_equal(fit_picture("front", noise[:, :48], 48), noise[:, :48])


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), "u1")],
)
def test_what_is_no_picture_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(BridgeError, match=r"camera front: expected uint8 \[H, W, 3\]"):
        fit_picture("front", picture, 4)
