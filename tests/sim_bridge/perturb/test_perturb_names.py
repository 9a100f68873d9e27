"""A perturbed suite is a suite with a name of its own."""

from __future__ import annotations

import numpy as np
import pytest

from agent.wire.errors import ConfigError
from sim_bridge.config import SimConfig
from sim_bridge.perturb.names import AXES, Perturbation, draws, split_suite
from sim_bridge.suites import make_suite


def test_a_name_says_what_is_perturbed_and_how_much() -> None:
    assert split_suite("tabletop") == ("tabletop", ())
    suite, perturbations = split_suite("libero_spatial-start_pose_150-camera")
    assert suite == "libero_spatial"
    assert perturbations == (Perturbation("camera"), Perturbation("start_pose", 1.5))
    assert [each.axis for each in split_suite("-".join(["toy", *AXES]))[1]] == list(AXES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tabletop-camra", "no axis 'camra'.*camera, lighting"),
        ("tabletop-camera-camera_50", "each axis once"),
        ("tabletop-camera_0", "1 to 400 percent"),
        ("tabletop-camera_401", "1 to 400 percent"),
        ("tabletop-instruction_50", "rephrased or not"),
        ("tabeltop-camera", "unknown suite 'tabeltop'"),
        ("toy-camera", "'camera' does not apply to suite 'toy'; these do: noise, instruction"),
    ],
)
def test_what_cannot_be_perturbed_is_refused_with_what_can(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_suite(SimConfig(suite=name))


def test_draws_differ_by_everything_that_names_an_episode_and_by_nothing_else() -> None:
    names = [
        ("camera", "a", "eval", 0),
        ("lighting", "a", "eval", 0),
        ("camera", "b", "eval", 0),
        ("camera", "a", "train", 0),
        ("camera", "a", "eval", 1),
        ("camera", "a", "eval", 0, 3),
    ]
    assert len({draws(*name).random() for name in names}) == len(names)
    assert draws(*names[0]).random() == draws(*names[0]).random()


def test_noise_covers_any_image_and_changes_nothing_else() -> None:
    clean, noisy, strong = (
        make_suite(SimConfig(suite=name)).make_body("move_up")
        for name in ("toy", "toy-noise", "toy-noise_167")
    )
    for body in (clean, noisy, strong):
        body.reset("eval", 2)
    plain, some, more = (body.observe() for body in (clean, noisy, strong))
    np.testing.assert_array_equal(plain.proprio, some.proprio)
    image = plain.images["wrist"].astype(float)
    difference = np.abs(some.images["wrist"] - image).mean()
    assert 0 < difference < np.abs(more.images["wrist"] - image).mean()
    np.testing.assert_array_equal(noisy.observe().images["wrist"], some.images["wrist"])
    noisy.apply(np.zeros(7, np.float32))
    assert not np.array_equal(noisy.observe().images["wrist"], some.images["wrist"])
