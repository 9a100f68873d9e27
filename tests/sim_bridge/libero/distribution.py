"""Plays episodes in the distribution's own environment, as its users do, and writes what it showed.

A program of its own: two ways to render share no process.

    python distribution.py OUT.npz SUITE TASK_INDEX IMAGE_SIZE STATE:SEED ...
"""

import contextlib
import io
import sys

import numpy as np

OPEN_HAND = [0.0] * 6 + [-1.0]
SETTLE_STEPS, STEPS = 10, 6


def random_actions(seed: int) -> np.ndarray:
    """f64[STEPS, 7] in [-1, 1]; the gripper opens or closes."""
    rng = np.random.default_rng(seed)
    motion = rng.uniform(-1.0, 1.0, (STEPS, 6))
    return np.concatenate([motion, rng.choice([-1.0, 1.0], (STEPS, 1))], axis=1)


def play(env, drawn: int, init_state: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The last observation, physical state and success of one episode, as in a fresh environment.

    drawn: the property initialisers that a load of the model adds.
    """
    from robosuite.utils.transform_utils import quat2axisangle

    # Each reset of the distribution adds one more draw for every drawer and knob; in a fresh
    # environment there are two, and the gripper was told nothing yet.
    del env.env.object_property_initializers[drawn:]
    env.seed(0)
    env.reset()
    env.robots[0].gripper.current_action[:] = 0.0
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


def main(out: str, suite: str, task_index: str, image_size: str, *episodes: str) -> None:
    """Writes `key/state` arrays of every episode "STATE:SEED" to `out`."""
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
        )
        init_states = tasks.get_task_init_states(int(task_index))
        drawn = len(env.env.object_property_initializers)
        shown = {}
        for episode in episodes:
            state, seed = map(int, episode.split(":"))
            seen = play(env, drawn, init_states[state], seed)
            shown |= {f"{name}/{state}": value for name, value in seen.items()}
    np.savez(out, instruction=np.array(task.language), **shown)


if __name__ == "__main__":
    main(*sys.argv[1:])
