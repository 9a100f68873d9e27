"""Plays episodes in the distribution's own environment, as published evaluations do: one seed, then
a hard reset for each episode. Writes what it showed.

A program of its own: two ways to render share no process.

    python distribution.py OUT.npz SUITE TASK_INDEX IMAGE_SIZE EPISODES
"""

import contextlib
import io
import sys

import numpy as np

OPEN_HAND = [0.0] * 6 + [-1.0]
SETTLE_STEPS, STEPS = 10, 20


def random_actions(seed: int) -> np.ndarray:
    """f64[STEPS, 7] in [-1, 1]; the hand goes down, to touch things, and opens or closes."""
    rng = np.random.default_rng(seed)
    motion = rng.uniform(-1.0, 1.0, (STEPS, 6))
    motion[:, 2] = -np.abs(motion[:, 2])
    return np.concatenate([motion, rng.choice([-1.0, 1.0], (STEPS, 1))], axis=1)


def play(env, init_state: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The last observation, physical state and success of the next episode."""
    from robosuite.utils.transform_utils import quat2axisangle

    env.reset()
    env.set_init_state(init_state)
    for action in [OPEN_HAND] * SETTLE_STEPS + list(random_actions(seed)):
        seen, _, done, _ = env.step(action)
    proprio = [seen["robot0_eef_pos"], quat2axisangle(seen["robot0_eef_quat"])]
    return {
        "state": env.get_sim_state(),
        "success": np.array(bool(done)),
        "proprio": np.concatenate([*proprio, seen["robot0_gripper_qpos"]]).astype(np.float32),
        "agentview": seen["agentview_image"][::-1, ::-1],
        "wrist": seen["robot0_eye_in_hand_image"][::-1, ::-1],
    }


def main(out: str, suite: str, task_index: str, image_size: str, episodes: str) -> None:
    """Writes `key/episode` arrays of the first episodes to `out`."""
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    with contextlib.redirect_stdout(io.StringIO()):
        tasks = benchmark.get_benchmark_dict()[suite]()
        task = tasks.get_task(int(task_index))
        folder = f"{get_libero_path('bddl_files')}/{task.problem_folder}"
        env = OffScreenRenderEnv(
            bddl_file_name=f"{folder}/{task.bddl_file}",
            camera_heights=int(image_size),
            camera_widths=int(image_size),
            ignore_done=True,
        )
        env.seed(0)
        init_states = tasks.get_task_init_states(int(task_index))
        shown = {}
        for episode in range(int(episodes)):
            seen = play(env, init_states[episode], seed=episode)
            shown |= {f"{name}/{episode}": value for name, value in seen.items()}
    np.savez(out, instruction=np.array(task.language), **shown)


if __name__ == "__main__":
    main(*sys.argv[1:])
