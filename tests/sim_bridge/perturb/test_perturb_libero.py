"""The axes on LIBERO: what they change is gone when the clean body is used again."""

from __future__ import annotations

import numpy as np
import pytest

from agent.wire.errors import ConfigError
from sim_bridge.config import SimConfig
from sim_bridge.libero.body import LiberoBody
from sim_bridge.perturb.libero import LiberoKit
from sim_bridge.perturb.names import split_suite
from sim_bridge.perturb.suite import PerturbedBody
from sim_bridge.robot import Observation
from sim_bridge.suites import make_suite

OPEN_HAND = np.array([0.0] * 6 + [-1.0], np.float32)
SOON, STEPS = 3, 32
SUITE = "libero_spatial"
COMBINED = ("camera", "lighting", "start_pose", "distractor")


@pytest.mark.parametrize("axis", ["object", "receptacle"])
def test_what_does_not_apply_is_refused_with_what_does(axis: str) -> None:
    with pytest.raises(ConfigError, match=r"LIBERO-PRO.*these do: camera, .*start_pose"):
        make_suite(SimConfig(suite=f"{SUITE}-{axis}"))


@pytest.mark.slow
def test_perturbed_episodes_repeat_and_leave_no_trace() -> None:
    suite = make_suite(SimConfig(suite=SUITE, image_size=64, renderer="fast"))
    clean = suite.make_body(suite.tasks[0])
    assert isinstance(clean, LiberoBody)

    def wrap(*axes: str) -> PerturbedBody:
        named = split_suite("-".join([SUITE, *axes]))[1]
        made = {each.axis: LiberoKit().make(each, clean, clean.env.task.slug) for each in named}
        return PerturbedBody(clean, clean.env.task.slug, made)

    def play(body: LiberoBody | PerturbedBody, steps: int) -> tuple[Observation, np.ndarray]:
        body.reset("eval", 1)
        for _ in range(steps):
            body.apply(OPEN_HAND)
        return body.observe(), clean.env.robosuite.sim.get_state().flatten()

    def require_equal(one: tuple, other: tuple) -> None:
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[0].proprio, other[0].proprio)
        for camera, image in one[0].images.items():
            np.testing.assert_array_equal(image, other[0].images[camera], err_msg=camera)

    start, soon, later = play(clean, 0), play(clean, SOON), play(clean, STEPS)
    for axes, is_moved in (
        (COMBINED, True),
        *(((axis,), False) for axis in ("camera", "lighting", "texture", "distractor")),
        (("start_pose",), True),
        (("position",), True),
    ):
        body = wrap(*axes)
        shown = play(body, 0)
        assert (shown[0].images["agentview"] != start[0].images["agentview"]).any(), axes
        assert np.array_equal(shown[1][1:], start[1][1:]) != is_moved, axes
        assert np.array_equal(shown[0].proprio, start[0].proprio) != ("start_pose" in axes), axes
        assert not body.success
        if not is_moved:
            np.testing.assert_array_equal(play(body, SOON)[1], soon[1])
        if axes == COMBINED:
            require_equal(play(body, 5), play(body, 5))
        require_equal(play(clean, 0), start)
    moved = play(wrap("reposition"), STEPS)
    assert not np.array_equal(moved[1], later[1])
    require_equal(play(clean, STEPS), later)
    clean.close()
