"""Success of the scripted experts on every task they know, and how fast episodes are made.

python -m benchmarks.libero.expert [WORKERS]   writes benchmarks/reports/libero-expert.md

Published init states 0 to 19 of every task of libero_spatial and libero_object, ten settling steps,
the horizons of OpenVLA's evaluation, no disturbance, no rendering.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from agent.process import die_with
from agent.process.terminal import counting
from benchmarks.libero.machine import describe_machine
from deploy.local.composition import CONFIGS
from sim_bridge.libero.env import LiberoEnv
from sim_bridge.libero.expert import expert_action
from sim_bridge.libero.protocol import OPEN_HAND, SETTLE_STEPS
from sim_bridge.libero.tasks import suite_tasks

REPORT = Path(__file__).parents[1] / "reports" / "libero-expert.md"
SUITES = ("libero_spatial", "libero_object")
EPISODES = 20  # of each task
WANTED = 0.95  # on every task


@dataclass(frozen=True)
class Row:
    """One task. Times in seconds: of making its environment, and of an episode with its reset."""

    suite: str
    task: str
    successes: int
    steps_median: float
    steps_max: int
    built_s: float
    cpu_s: float
    wall_s: float


def main() -> None:
    """Measures every task, prints the table and writes it."""
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    places = [(suite, index) for suite in SUITES for index in range(10)]
    began_s = time.perf_counter()
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=die_with,
        initargs=(os.getpid(),),
        max_tasks_per_child=1,  # an environment leaves memory behind
    ) as pool:
        rows = []
        with counting("tasks", len(places)) as count:
            for row in pool.map(measure, places):
                rows.append(row)
                count.advance()
    text = report(rows, workers, time.perf_counter() - began_s)
    REPORT.write_text(text, encoding="utf-8")
    results = Path("runs") / "libero-expert.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    print(text)


def measure(place: tuple[str, int]) -> Row:
    """The expert on task number `place[1]` of suite `place[0]`."""
    suite, index = place
    task = suite_tasks(suite)[index]
    horizon_steps = OmegaConf.load(CONFIGS / "suite/protocol/openvla.yaml").horizons[suite]
    began_s = time.perf_counter()
    env = LiberoEnv(task)
    built_s = time.perf_counter() - began_s
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    steps = [solve(env, state, horizon_steps) for state in range(EPISODES)]
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    env.close()
    solved = [count for count in steps if count] or [0]
    return Row(
        suite, task.slug, np.count_nonzero(steps), float(np.median(solved)), max(solved), built_s,
        cpu_s / EPISODES, wall_s / EPISODES,
    )  # fmt: skip


def solve(env: LiberoEnv, state: int, horizon_steps: int) -> int:
    """Steps to success from the published init state `state`; 0 without one."""
    env.reset_published(state)
    for _ in range(SETTLE_STEPS):
        env.settle(OPEN_HAND)
    for step in range(1, horizon_steps + 1):
        if env.step(expert_action(env)):
            return step
    return 0


def report(rows: list[Row], workers: int, total_s: float) -> str:
    """The table as Markdown."""
    worst = min(row.successes for row in rows)
    episodes = len(rows) * EPISODES
    stepping_s = sum(row.wall_s for row in rows) * EPISODES / workers
    verdict = "reached" if worst >= WANTED * EPISODES else "MISSED"
    lines = [
        "# The scripted experts on LIBERO",
        "",
        f"`python -m benchmarks.libero.expert {workers}`: published init states 0 to "
        f"{EPISODES - 1}, ten settling steps,",
        "horizons of 220 (spatial) and 280 steps (object), no disturbance, no rendering.",
        describe_machine(),
        "",
        f"At least {WANTED:.0%} on every task: {verdict}; the worst is {worst}/{EPISODES}. "
        f"{episodes} episodes with {workers} workers",
        f"in {total_s:.0f} s, of which an environment's making takes "
        f"{np.mean([row.built_s for row in rows]):.1f} s a task;",
        f"without that **{episodes / stepping_s * 3600:,.0f} episodes an hour**.",
        "",
        "| suite | task | success | steps, median | longest | CPU s an episode |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.suite} | {row.task} | {row.successes}/{EPISODES} | {row.steps_median:.0f} | "
        f"{row.steps_max} | {row.cpu_s:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
