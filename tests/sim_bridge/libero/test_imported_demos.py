"""An expert's episode as collected, and the same one written as LIBERO writes and then imported."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from learner import demos_import
from learner.demonstrations import load_demonstrations
from sim_bridge.demos.noise import ActionNoise
from sim_bridge.libero.body import LiberoBody, LiberoSuite
from sim_bridge.libero.demos import DemoConfig, record_episode
from sim_bridge.libero.expert import expert_action
from sim_bridge.libero.protocol import DEMONSTRATION

CONFIG = DemoConfig("libero_spatial", tasks=(0,), horizon_steps=28, image_size=48)
SEED = 11
SKIPPED = 5  # first steps that the published files lack


def clean_noise() -> ActionNoise:
    """Of an episode that is not disturbed."""
    noises = (ActionNoise(np.random.default_rng(seed)) for seed in range(100))
    return next(noise for noise in noises if not noise.disturbed)


def write_published(body: LiberoBody, path: Path) -> None:
    """Plays the expert and writes row t of `obs` after action t, as LIBERO's own program does."""
    env = body.env
    names = "states", "actions", "agentview_rgb", "eye_in_hand_rgb", "ee", "fingers", "joints"
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    body.reset(DEMONSTRATION, SEED)
    for _ in range(CONFIG.horizon_steps):
        rows["states"].append(env.robosuite.sim.get_state().flatten())
        rows["actions"].append(expert_action(env).astype(np.float64))
        body.apply(rows["actions"][-1])
        seen = body.observe()
        rows["agentview_rgb"].append(seen.images["agentview"][::-1, ::-1])
        rows["eye_in_hand_rgb"].append(seen.images["wrist"][::-1, ::-1])
        rows["ee"].append(seen.proprio[:6].astype(np.float64))
        rows["fingers"].append(seen.proprio[6:].astype(np.float64))
        rows["joints"].append(env.look().qpos[:7].copy())
    arrays = {name: np.stack(values)[SKIPPED:] for name, values in rows.items()}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["bddl_file_name"] = str(env.task.bddl_path)
        data.attrs["macros_image_convention"] = "opengl"
        group = data.create_group("demo_0")
        group["states"], group["actions"] = arrays["states"], arrays["actions"]
        for name, array in (
            ("agentview_rgb", "agentview_rgb"), ("eye_in_hand_rgb", "eye_in_hand_rgb"),
            ("ee_states", "ee"), ("gripper_states", "fingers"), ("joint_states", "joints"),
        ):  # fmt: skip
            group[f"obs/{name}"] = arrays[array]


@pytest.mark.slow
def test_an_imported_episode_equals_the_collected_one(tmp_path: Path) -> None:
    suite = LiberoSuite(CONFIG.suite, CONFIG.image_size, "disjoint", CONFIG.renderer)
    body = suite.make_body(suite.tasks[CONFIG.tasks[0]])
    body.reset(DEMONSTRATION, SEED)
    collected = record_episode(body, clean_noise(), CONFIG)
    path = tmp_path / f"{body.env.task.slug}_demo.hdf5"
    write_published(body, path)
    body.close()
    words = ["--from=libero-hdf5", f"--out={tmp_path / 'out'}", f"--chunk={CONFIG.chunk}"]
    assert demos_import.main([str(path), *words, f"--stride={CONFIG.stride}", "--keep-noops"]) == 0

    imported = load_demonstrations([tmp_path / "out"])
    assert imported.slugs == (body.env.task.slug,)
    assert imported.instructions == (body.env.task.instruction,)
    same = collected[(SKIPPED + 1) // CONFIG.stride :]
    assert len(imported) == len(same) > 8
    for name in ("actions", "proprio", "agentview", "wrist"):
        expected = np.stack([row[name] for row in same])
        assert getattr(imported, name).dtype == expected.dtype
        np.testing.assert_array_equal(getattr(imported, name), expected, err_msg=name)
