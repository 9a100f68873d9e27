"""Outcomes from a person's keys and from a detector of one's own."""

from __future__ import annotations

import os
import pty

import numpy as np
import pytest

from agent.wire.errors import ConfigError
from agent.wire.messages import Outcome
from sim_bridge.robot import BridgeError, Observation
from sim_bridge.robots.judge import Detector, OperatorKeys, make_judge

SEEN = Observation({"agentview": np.zeros((2, 2, 3), np.uint8)}, np.ones(3, np.float32))


def is_bright(images: dict[str, np.ndarray], proprio: np.ndarray) -> str | None:
    """A detector."""
    assert proprio.sum() == 3
    return "success" if images["agentview"].max() > 100 else None


def is_confused(images: dict[str, np.ndarray], proprio: np.ndarray) -> str:
    """Not a detector."""
    return "timeout"


def test_an_operators_last_key_counts_and_the_terminal_is_left_as_it_was() -> None:
    person, terminal = pty.openpty()
    try:
        before = os.get_blocking(terminal)
        with OperatorKeys(terminal) as keys:
            assert keys.outcome() is None
            os.write(person, b"x")
            assert keys.outcome() is None, "means nothing"
            os.write(person, b"fs?")
            assert keys.outcome() == Outcome.SUCCESS
            assert keys.outcome() is None, "said once"
            os.write(person, b"i")
            assert keys.outcome() == Outcome.INTERVENED
        assert os.get_blocking(terminal) == before
    finally:
        os.close(person)
        os.close(terminal)


def test_an_operator_without_a_terminal_is_refused() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(ConfigError, match="terminal"):
            OperatorKeys(reading)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_detector_sees_every_observation_and_is_held_to_its_words() -> None:
    with make_judge(f"{__name__}:is_bright") as detector:
        detector.see(SEEN)
        assert detector.outcome() is None
        bright = Observation({"agentview": np.full((2, 2, 3), 200, np.uint8)}, SEEN.proprio)
        detector.see(bright)
        assert detector.outcome() == Outcome.SUCCESS
        assert detector.outcome() is None
    with pytest.raises(BridgeError, match="timeout"):
        Detector(f"{__name__}:is_confused").see(SEEN)


@pytest.mark.parametrize("name", ["nobody", "no_module_of_that_name:f", f"{__name__}:no_function"])
def test_an_unknown_judge_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="outcome"):
        make_judge(name)
    with make_judge("robot") as silent:
        silent.see(SEEN)
        assert silent.outcome() is None
