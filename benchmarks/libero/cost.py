"""CPU time of one LIBERO episode here and in the distribution's own environment.

python -m benchmarks.libero.cost   writes benchmarks/reports/libero-cost.md

The same actions from the same published init states everywhere: the scripted expert's, recorded
first. Ways to play them, each a process of its own:

- `distribution`: `OffScreenRenderEnv` as its users drive it, both cameras rendered at every step.
- `exact`, `fast`: the bridge's environment and renderers; only what the policy looks at is
  rendered, once a chunk.

To each the policy's own time is added: nano-tabletop's, one observation a forward. All begin with a
soft reset; making the environment is told apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.libero.machine import describe_machine
from sim_bridge.libero.protocol import OPEN_HAND, SETTLE_STEPS

REPORT = Path(__file__).parents[1] / "reports" / "libero-cost.md"
SUITE, TASK, STATES = "libero_spatial", 0, (0, 1, 2)
CHUNK_STEPS = 8
IMAGE_SIZES = (224, 64)  # of published checkpoints, and of nano-libero
WAYS = ("distribution", "exact", "fast")
MODEL = Path(__file__).parents[2] / "agent" / "assets" / "nano"
WARM_UP, TIMED = 10, 50  # chunks
LIMIT_S = 900.0
WANTED = 4.0  # times less CPU


@dataclass
class Cost:
    """CPU seconds of a process: making its environment; per step, per look, and per episode."""

    built_s: float
    step_s: float
    look_s: float
    episode_s: float
    steps: float  # of an episode
    looks: float  # pictures of both cameras


def main() -> None:
    """Measures every way, prints the table and writes it."""
    with tempfile.TemporaryDirectory() as folder:
        actions = Path(folder) / "actions.npz"
        _child("record", actions)
        costs = {
            (way, size): Cost(**_child(way, actions, size)) for size in IMAGE_SIZES for way in WAYS
        }
        policy_s = _child("policy", actions)["chunk_s"]
    text = report(costs, policy_s)
    REPORT.write_text(text, encoding="utf-8")
    results = Path("runs") / "libero-cost.json"
    results.parent.mkdir(exist_ok=True)
    table = {f"{way}-{size}": vars(cost) for (way, size), cost in costs.items()}
    results.write_text(json.dumps({**table, "policy_chunk_s": policy_s}, indent=1), "utf-8")
    print(text)


def _child(way: str, actions: Path, image_size: int = 0) -> dict[str, Any]:
    """What that part of this program printed last: two ways to render share no process."""
    words = [sys.executable, "-m", "benchmarks.libero.cost", way, str(actions), str(image_size)]
    done = subprocess.run(words, check=True, timeout=LIMIT_S, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class Stopwatch:
    """CPU seconds by name, and how often."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = {}
        self.times: dict[str, int] = {}

    def measure(self, name: str, work, *arguments):
        """Does `work(*arguments)`; returns what it returns."""
        began_s = time.process_time()
        found = work(*arguments)
        self.spent_s[name] = self.spent_s.get(name, 0.0) + time.process_time() - began_s
        self.times[name] = self.times.get(name, 0) + 1
        return found

    def cost(self) -> Cost:
        """Steps while the scene settles are steps of the episode."""
        spent_s, times = self.spent_s, self.times
        total_s = sum(spent_s.values()) - spent_s["build"]
        looks = times.get("look", 0)
        return Cost(
            spent_s["build"],
            spent_s["step"] / times["step"],
            spent_s["look"] / looks if looks else 0.0,
            total_s / len(STATES),
            times["step"] / len(STATES),
            looks / len(STATES),
        )


def record(path: Path) -> dict[str, Any]:
    """The expert's actions of each state."""
    from sim_bridge.libero.env import LiberoEnv
    from sim_bridge.libero.expert import expert_action
    from sim_bridge.libero.tasks import suite_tasks

    env = LiberoEnv(suite_tasks(SUITE)[TASK])
    actions: dict[str, np.ndarray] = {}
    for state in STATES:
        env.reset_published(state)
        for _ in range(SETTLE_STEPS):
            env.settle(OPEN_HAND)
        played = []
        while not env.success:
            played.append(expert_action(env))
            env.step(played[-1])
        actions[str(state)] = np.stack(played)
    np.savez(path, **actions)  # type: ignore[arg-type]
    return {}


def play_here(actions: Any, image_size: int, renderer: str) -> Cost:
    """The bridge's environment; a look is both cameras and proprio, before each chunk."""
    from sim_bridge.gl import select_backend

    select_backend()
    from sim_bridge.libero.env import LiberoEnv
    from sim_bridge.libero.render import Renderer
    from sim_bridge.libero.tasks import suite_tasks

    def look() -> None:
        picture.render()
        env.proprio()

    watch = Stopwatch()
    env = watch.measure("build", LiberoEnv, suite_tasks(SUITE)[TASK])
    picture = watch.measure("build", Renderer, env, image_size, renderer)
    for state in STATES:
        watch.measure("reset", env.reset_published, state)
        for _ in range(SETTLE_STEPS):
            watch.measure("step", env.settle, OPEN_HAND)
        for step, action_A in enumerate(actions[str(state)]):
            if step % CHUNK_STEPS == 0:
                watch.measure("look", look)
            watch.measure("step", env.step, action_A)
        assert env.success, "the recorded actions solve it"
    return watch.cost()


def play_distribution(actions: Any, image_size: int) -> Cost:
    """The distribution's environment; its step renders, and hands out every observation."""
    from sim_bridge.gl import select_backend

    select_backend()
    from libero.libero.envs import OffScreenRenderEnv

    from sim_bridge.libero.tasks import suite_tasks

    task = suite_tasks(SUITE)[TASK]
    watch = Stopwatch()
    env = watch.measure(
        "build",
        lambda: OffScreenRenderEnv(
            bddl_file_name=str(task.bddl_path),
            camera_heights=image_size,
            camera_widths=image_size,
            hard_reset=False,
        ),
    )
    init_states = task.init_states()
    env.seed(0)
    for state in STATES:
        watch.measure("reset", env.reset)
        watch.measure("reset", env.set_init_state, init_states[state])
        for action_A in [OPEN_HAND] * SETTLE_STEPS + list(actions[str(state)]):
            watch.measure("step", env.step, action_A)
    return watch.cost()


def time_policy() -> dict[str, Any]:
    """CPU seconds of one chunk of the nano policy, one observation a forward, after warm-up."""
    import torch

    torch.set_num_threads(1)
    from agent.config import PolicyConfig
    from agent.policy import ActRequest
    from agent.vla_loading import load_vla_policy
    from sim_bridge.tabletop.tasks import TASKS

    policy = load_vla_policy(PolicyConfig(model_dir=str(MODEL), unnorm_key="tabletop"))
    images = {name: np.zeros(shape, np.uint8) for name, shape in policy.images.items()}
    proprio = np.zeros(policy.proprio_dim, np.float32)
    request = ActRequest(images, proprio, TASKS[0].instruction, "base", 1.0, None)
    for _ in range(WARM_UP):
        policy.act([request])
    began_s = time.process_time()
    for _ in range(TIMED):
        policy.act([request])
    return {"chunk_s": (time.process_time() - began_s) / TIMED}


def report(costs: dict[tuple[str, int], Cost], policy_s: float) -> str:
    """The table as Markdown."""
    lines = [
        "# What a LIBERO episode costs",
        "",
        f"`python -m benchmarks.libero.cost`: {SUITE} task {TASK}, published init states "
        f"{', '.join(map(str, STATES))}, the same",
        f"actions everywhere, {SETTLE_STEPS} settling steps, chunks of {CHUNK_STEPS}. CPU time, "
        "soft resets, without making",
        f"the environment. {describe_machine()}",
        f"A chunk of the policy (nano-tabletop, one observation) takes {policy_s * 1e3:.1f} ms and "
        "is in every sum.",
        "",
        "| image | way | ms a step | ms a look | looks | s an episode | times less |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in IMAGE_SIZES:
        chunks_s = policy_s * costs["exact", size].looks
        base_s = costs["distribution", size].episode_s + chunks_s
        for way in WAYS:
            cost = costs[way, size]
            look = f"{cost.look_s * 1e3:.1f}" if cost.looks else "in the step"
            looks = f"{cost.looks:.0f}" if cost.looks else f"{cost.steps:.0f}"
            total_s = cost.episode_s + chunks_s
            lines.append(
                f"| {size} | {way} | {cost.step_s * 1e3:.1f} | {look} | {looks} | {total_s:.2f} | "
                f"{base_s / total_s:.1f} |"
            )
    least = min(
        (costs["distribution", size].episode_s + policy_s * costs["exact", size].looks)
        / (costs[way, size].episode_s + policy_s * costs["exact", size].looks)
        for size in IMAGE_SIZES
        for way in ("exact", "fast")
    )
    verdict = "reached everywhere" if least >= WANTED else "missed somewhere"
    lines += ["", f"At least {WANTED:g} times less: {verdict}; the least is {least:.1f}."]
    return "\n".join(lines) + "\n"


def part(way: str, path: Path, image_size: int) -> dict[str, Any]:
    """One process's share."""
    if way == "record":
        return record(path)
    if way == "policy":
        return time_policy()
    with np.load(path) as actions:
        if way == "distribution":
            return vars(play_distribution(actions, image_size))
        return vars(play_here(actions, image_size, way))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(part(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
