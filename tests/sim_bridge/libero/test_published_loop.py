"""What the simulator does and shows under composed settings, against traces of the published loops.

Episodes are leased in another order than they were recorded in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from published import CAMERAS, CHUNK, CRL_TRACES, EPISODES, STATE_TOLERANCE, TRACES, Trace

from agent.wire.messages import SlotLease
from deploy.local.settings import compose_run
from sim_bridge.config import SimConfig
from sim_bridge.libero.body import LiberoBody
from sim_bridge.libero.env import LiberoEnv
from sim_bridge.player import Played, Player
from sim_bridge.suites import make_suite

pytestmark = [pytest.mark.slow, pytest.mark.golden]

ORDER = (2, 0, 1)
PRESETS = {"libero_spatial": "vlacrl-spatial", "libero_10": "vlacrl-long"}
OTHER_MUJOCO_TOLERANCE = 1e-4  # the success was recorded with 3.3.7; hand and bowl touch in it
OFF_VALUES = 1e-3  # share of a picture, by the Mesa that drew the recorded ones
THUMB_LEVELS = 3  # of another one's


@contextmanager
def playing(trace: Trace, folder: Path, *settings: str) -> Iterator[tuple[Player, LiberoBody]]:
    """The body of the trace's task as a run of these settings drives it."""
    (folder / "config.json").write_text("{}")
    run = compose_run([*settings, f"model.model_dir={folder}"])
    sim = OmegaConf.merge(OmegaConf.structured(SimConfig), run.processes["sim-0"])
    config = OmegaConf.to_object(sim)
    assert isinstance(config, SimConfig)
    suite = make_suite(config)
    body = suite.make_body(trace.slug)
    assert isinstance(body, LiberoBody)
    player = Player(suite, config.stop_at_success)
    player._body, player._task = body, trace.slug
    yield player, body
    player.close()
    suite.close()


def lease(trace: Trace, split: str, episode: int) -> SlotLease:
    return SlotLease("order#0", trace.suite, trace.slug, "", split, episode, 600, split, "base", 60)


def state(env: LiberoEnv) -> np.ndarray:
    values = env.robosuite.sim.get_state().flatten()
    assert isinstance(values, np.ndarray)
    return values


def fixtures(env: LiberoEnv, names: list[str]) -> np.ndarray:
    """f64[F, 7], position and quaternion of each in its model."""
    roots = [env.model.body(env.robosuite.fixtures_dict[name].root_body) for name in names]
    return np.array([[*root.pos, *root.quat] for root in roots]).reshape(-1, 7)


def bodies(env: LiberoEnv, names: list[str]) -> np.ndarray:
    """f64[B, 7], where each object and fixture is."""
    ids = [env.robosuite.obj_body_id[name] for name in names]
    return np.concatenate([env.data.xpos[ids], env.data.xquat[ids]], axis=1)


def check_pictures(
    images: dict[str, np.ndarray], trace: Trace, arrays: dict[str, np.ndarray], at: tuple[int, int]
) -> None:
    """Turned once, and equal; by another Mesa alike."""
    episode, step = at
    for camera in CAMERAS:
        raw = images[camera][::-1, ::-1]
        assert raw.shape == (256, 256, 3)
        thumb = raw.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
        off = np.abs(thumb - arrays[f"thumb_{camera}"][episode, step // CHUNK])
        assert off.max() <= THUMB_LEVELS, (camera, at)
        recorded = trace.picture(episode, step, camera, "raw256")
        if recorded is not None and _same_mesa():
            off = np.abs(raw.astype(int) - recorded)
            assert (off > 0).mean() <= OFF_VALUES, (camera, at)


def _same_mesa() -> bool:
    """Whether pictures here are drawn as the recorded ones were."""
    from OpenGL import GL

    version = GL.glGetString(GL.GL_VERSION)
    return version is not None and b"Mesa 22.3.6" in version


def play_chunks(
    player: Player, trace: Trace, arrays: dict[str, np.ndarray], episode: int
) -> Iterator[tuple[int, Played]]:
    """Plays the recorded actions, a look before each chunk; yields how far it is."""
    actions = arrays["env_actions"][episode]
    for start in range(0, len(actions), CHUNK):
        check_pictures(player.observe().images, trace, arrays, (episode, start))
        chunk = actions[start : start + CHUNK]
        yield start + len(chunk), player.play(chunk, len(chunk))


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.stem)
def test_the_published_loop(trace: Trace, tmp_path: Path) -> None:
    arrays = trace.arrays()
    settings = (f"suite={trace.suite}", "suite/protocol=openvla", "model=openvla-oft-7b")
    with playing(trace, tmp_path, *settings, "budget=eval") as (player, body):
        for episode in ORDER:
            player.reset(lease(trace, "eval", episode))
            env = body.env
            found = fixtures(env, trace.told["fixtures"])
            np.testing.assert_allclose(
                found, arrays["fixture_model"][episode], atol=STATE_TOLERANCE
            )
            np.testing.assert_allclose(
                state(env), arrays["state_settled"][episode], atol=STATE_TOLERANCE
            )
            np.testing.assert_allclose(
                bodies(env, trace.told["bodies"]),
                arrays["bodies_settled"][episode],
                atol=STATE_TOLERANCE,
            )
            proprio = [player.observe().proprio]
            for done, played in play_chunks(player, trace, arrays, episode):
                np.testing.assert_allclose(
                    state(env), arrays["states"][episode, done - 1], atol=STATE_TOLERANCE
                )
                proprio.append(player.observe().proprio)
                assert not played.success
                assert not arrays["done"][episode, :done].any()
            seen = arrays["proprio"][episode][[0, 8, 16, 24, 30]]
            np.testing.assert_allclose(np.stack(proprio), seen, atol=STATE_TOLERANCE)


@pytest.mark.parametrize("trace", CRL_TRACES, ids=lambda trace: trace.stem)
def test_the_loop_that_seeds_before_every_reset(trace: Trace, tmp_path: Path) -> None:
    arrays = trace.arrays("crl")
    with playing(trace, tmp_path, f"preset={PRESETS[trace.suite]}") as (player, body):
        for split in ("eval", "train"):
            for episode in ORDER:
                player.reset(lease(trace, split, episode))
                np.testing.assert_allclose(
                    fixtures(body.env, trace.told["fixtures"]),
                    arrays["fixture_model"][episode],
                    atol=STATE_TOLERANCE,
                )
                np.testing.assert_allclose(
                    state(body.env), arrays["state_settled"][episode], atol=STATE_TOLERANCE
                )
                np.testing.assert_allclose(
                    player.observe().proprio, arrays["proprio"][episode], atol=STATE_TOLERANCE
                )


def test_success_is_looked_at_after_every_step_and_ends_the_episode(tmp_path: Path) -> None:
    trace = TRACES[0]
    arrays, whole = trace.arrays("success"), trace.arrays()
    actions = arrays["env_actions"]
    settings = (f"suite={trace.suite}", "suite/protocol=openvla", "model=openvla-oft-7b")
    with playing(trace, tmp_path, *settings, "budget=eval") as (player, body):
        player.reset(lease(trace, "eval", 0))
        np.testing.assert_allclose(state(body.env), whole["state_settled"][0], atol=STATE_TOLERANCE)
        steps, played = 0, None
        # The last chunk goes on behind the success: what is left of it is not played.
        padded = np.concatenate([actions, np.repeat(actions[-1:], CHUNK, axis=0)])
        while played is None or not played.over:
            played = player.play(padded[steps : steps + CHUNK], CHUNK)
            steps += played.steps
            if played.steps == CHUNK:
                np.testing.assert_allclose(
                    state(body.env),
                    arrays["states_every_8"][steps // CHUNK - 1],
                    atol=OTHER_MUJOCO_TOLERANCE,
                )
        assert (steps, played.success) == (len(actions), True)
        assert arrays["done"].tolist() == [False] * (steps - 1) + [True]
        np.testing.assert_allclose(
            state(body.env), arrays["state_last"], atol=OTHER_MUJOCO_TOLERANCE
        )


def test_a_split_of_the_published_episodes_keeps_each_ones_fixtures(tmp_path: Path) -> None:
    trace = TRACES[0]
    arrays = trace.arrays()
    settings = (f"suite={trace.suite}", "model=openvla-oft-7b")
    with playing(trace, tmp_path, *settings) as (player, body):
        for episode in range(EPISODES)[::-1]:
            player.reset(lease(trace, "train", episode))
            np.testing.assert_allclose(
                state(body.env), arrays["state_settled"][episode], atol=STATE_TOLERANCE
            )
            check_pictures(player.observe().images, trace, arrays, (episode, 0))
