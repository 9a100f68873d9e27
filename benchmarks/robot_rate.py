"""How punctual robots are while a learner computes beside them, and what a dead server does.

python -m benchmarks.robot_rate [EPISODES]   writes benchmarks/reports/robot-rate.md

A real server with the nano policy, then each robot of ROBOTS as a process of its own at 20 Hz:
first alone, then while benchmarks.learner_load makes one GRPO update after the other. At last the
server is stopped with SIGSTOP in the middle of an episode and goes on later.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.local.processes import module_command, module_environment

REPORT = Path(__file__).parent / "reports" / "robot-rate.md"
RESULTS = Path("runs") / "robot-rate.json"
RATE_HZ = 20.0
HORIZON_STEPS = 100
TASK, INSTRUCTION = "pick_red_tray", "put the red cube in the tray"
ARMS = Path(__file__).parents[1] / "tests" / "sim_bridge" / "robots"  # has a simulated LeRobot arm
_KEYS = ",".join([*(f"joint{k}.pos" for k in range(6)), "gripper.pos"])
# Settings of `perennial robot` for each robot; {folder}/recorded has episodes of the task.
ROBOTS: dict[str, list[str]] = {
    "simulated": ["robot=simulated", "suite=tabletop"],
    "replay": ["robot=replay", "replay_dir={folder}/recorded"],
    "lerobot": [
        "robot=lerobot",
        "lerobot.robot=simulated_lerobot:SimulatedArm",
        "+lerobot.arguments.calibration_dir={folder}/calibration",
        "+lerobot.cameras.agentview=front",
        "+lerobot.cameras.wrist=hand",
        f"lerobot.proprio=[{_KEYS},load]",
        f"lerobot.actions=[{_KEYS}]",
        "rest.home=[10,10,10,10,10,10,10]",
        "rest.home_s=0.5",
    ],
}
RECORDED_EPISODES = 4  # for the replay robot and the learner
STOPPED_S = 3.0
STILL = ["limits.low=[0.0]", "limits.high=[0.0]"]  # an arm that cannot move reaches no goal
STILL_STEPS = 200
READY_LIMIT_S = 300.0
ROBOT_LIMIT_S = 900.0
HTTP_LIMIT_S = 30.0
ALONE, LEARNER = "none", "learner"


@dataclass(frozen=True)
class Row:
    """One robot's process. beside: what else ran. learner_cpu: share of a core that it had."""

    robot: str
    beside: str
    episodes: int
    summary: dict[str, Any]
    learner_cpu: float = 0.0


@dataclass(frozen=True)
class Stop:
    """What a robot made of a server that stood still for `stopped_s`."""

    stopped_s: float
    said: list[str]
    steps: int
    outcome: str
    summary: dict[str, Any]


@dataclass(frozen=True)
class Server:
    """A running policy server: its process, robots' endpoint, /metrics, and state folder."""

    pid: int
    endpoint: str
    http: str
    folder: Path

    def ticks_executed(self) -> float:
        """As the robots told it."""
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=HTTP_LIMIT_S) as answer:
            text = answer.read().decode()
        found = re.search(r'^perennial_robot_ticks_total{what="executed"} (\S+)$', text, re.M)
        return float(found[1]) if found else 0.0


def main() -> None:
    """Measures, prints, and writes the report."""
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    if episodes < 1:
        raise SystemExit(f"EPISODES: expected at least 1, got {episodes}")
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as name, _server(Path(name)) as at:
        folder = Path(name)
        run_robot(at, folder, "simulated", RECORDED_EPISODES)
        recorded = folder / "recorded"
        _copy_episodes(at.folder, recorded)
        rows = [
            Row(robot, ALONE, episodes, run_robot(at, folder, robot, episodes)) for robot in ROBOTS
        ]
        with _learner(recorded, folder / "learner.log") as learner:
            for robot in ROBOTS:
                before_s, from_s = _cpu_s(learner), time.monotonic()
                summary = run_robot(at, folder, robot, episodes)
                share = (_cpu_s(learner) - before_s) / (time.monotonic() - from_s)
                rows.append(Row(robot, LEARNER, episodes, summary, share))
            stop = stop_server(at, folder)
    report = render(rows, stop)
    results = {"rows": [asdict(row) for row in rows], "stop": asdict(stop)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report, encoding="utf-8")
    print(report)


# ---- measuring -------------------------------------------------------------------------------


def run_robot(at: Server, folder: Path, robot: str, episodes: int) -> dict[str, Any]:
    """The summary of a robot's process after so many whole episodes."""
    report = folder / "report.json"
    with _robot(at, folder, robot, episodes, [f"horizon_steps={HORIZON_STEPS}"]) as child:
        _wait_for_end(child, robot, folder)
    summary: dict[str, Any] = json.loads(report.read_text())
    return summary


def stop_server(at: Server, folder: Path) -> Stop:
    """Stops the server in the middle of an episode of an arm that cannot move."""
    before = at.ticks_executed()
    steps = [f"horizon_steps={STILL_STEPS}", *STILL]
    with _robot(at, folder, "simulated", 1, steps) as child:
        _wait_for(lambda: at.ticks_executed() > before, "a robot that acts", READY_LIMIT_S)
        os.kill(at.pid, signal.SIGSTOP)
        try:
            time.sleep(STOPPED_S)
        finally:
            os.kill(at.pid, signal.SIGCONT)
        _wait_for_end(child, "stopped server's", folder)
    said = (folder / "robot.log").read_text(errors="replace").splitlines()
    line = json.loads((folder / "robot.jsonl").read_text().splitlines()[-1])
    summary = json.loads((folder / "report.json").read_text())
    watchdog = [each for each in said if "holding" in each or "going on" in each]
    return Stop(STOPPED_S, watchdog, line["steps"], line["outcome"], summary)


@contextmanager
def _robot(
    at: Server, folder: Path, robot: str, episodes: int, more: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    settings = [word.format(folder=folder) for word in ROBOTS[robot]]
    words = [
        *settings, f"endpoint={at.endpoint}", f"task={TASK}", f"episodes={episodes}",
        f"rate_hz={RATE_HZ}", f"log_path={folder}/robot.jsonl",
        f"report_path={folder}/report.json", *more,
    ]  # fmt: skip
    with _process("sim_bridge.robots", words, folder / "robot.log") as child:
        yield child


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    path = folder / "agent" / "endpoints.json"
    words = [
        f"state_dir={folder}/agent", f"adapters_dir={folder}/adapters",
        "robots_endpoint=tcp://127.0.0.1:0",
        f"+tasks={{{TASK}: {{instruction: {INSTRUCTION}}}}}",
    ]  # fmt: skip
    with _process("agent", words, folder / "agent.log") as child:
        _wait_for(lambda: path.exists() or child.poll() is not None, "a server", READY_LIMIT_S)
        if child.poll() is not None:
            raise SystemExit(f"the server did not start: {(folder / 'agent.log').read_text()}")
        at = json.loads(path.read_text())
        yield Server(child.pid, at["robots"], at["http"], folder / "agent")


@contextmanager
def _learner(recorded: Path, log: Path) -> Iterator[psutil.Process]:
    """A process that is about to make its first update."""
    with _process("benchmarks.learner_load", [str(recorded)], log) as child:
        begun = lambda: "chunks" in log.read_text() or child.poll() is not None  # noqa: E731
        _wait_for(begun, "the learner", READY_LIMIT_S)
        if child.poll() is not None:
            raise SystemExit(f"the learner did not start: {log.read_text()[-1000:]}")
        yield psutil.Process(child.pid)


@contextmanager
def _process(module: str, words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command, environment = module_command(module, words), module_environment(threads=1)
    environment["PYTHONPATH"] += f"{os.pathsep}{ARMS}"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _copy_episodes(source: Path, target: Path) -> None:
    """What there is so far: robots record more of them later."""
    target.mkdir()
    for path in source.rglob("*.mcap"):
        (target / path.name).write_bytes(path.read_bytes())


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait_for_end(child: subprocess.Popen[bytes], robot: str, folder: Path) -> None:
    """Of a robot's process. Raises SystemExit unless it ended well: its files are old ones then."""
    _wait_for(lambda: child.poll() is not None, f"{robot}: the end", ROBOT_LIMIT_S)
    if child.returncode:
        said = (folder / "robot.log").read_text(errors="replace").strip()
        raise SystemExit(f"the {robot} robot ended with {child.returncode}: {said[-500:]}")


def _wait_for(condition: Callable[[], bool], what: str, limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.05)


# ---- reporting -------------------------------------------------------------------------------


def render(rows: Sequence[Row], stop: Stop) -> str:
    """The report, in Markdown."""
    lines = [
        "# Robots at a fixed rate beside a learner",
        "",
        f"`python -m benchmarks.robot_rate {rows[0].episodes}`: each robot is a process of its "
        f"own at {RATE_HZ:g} Hz with",
        f"the nano policy, in real time; whole episodes of `{TASK}`, so many for each robot: "
        f"{rows[0].episodes}.",
        "The next chunk is asked for",
        "while the present one plays. Beside it runs nothing, or a learner that makes one GRPO",
        "update after the other. A tick is late by what it comes after it was due; it is missed",
        "when the one before took more than a whole period; it is held when there was no action:",
        "at the start of every episode until the first chunk is there, and whenever one is stale.",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| robot | beside it | its CPU, cores | ticks | late p50 ms | p99 ms | max ms | missed "
        "| held | chunks | stale | chunk delay, ticks: mean | p99 | max |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_table_line(row) for row in rows),
        "",
        "## A server that stands still",
        "",
        f"The learner still runs. In the middle of an episode of {stop.steps} actions the server "
        f"is stopped with SIGSTOP for {stop.stopped_s:g} s,",
        "then continued with SIGCONT. The arm's limits keep it where it is, so that the episode",
        f"lasts. Watchdog trips: {stop.summary['watchdog_trips']}; ticks held: "
        f"{stop.summary['held']}; late p99: {_ms(stop.summary['lateness_p99_s'])} ms; missed: "
        f"{stop.summary['missed']};",
        f"the episode ended as `{stop.outcome}` after {stop.steps} actions. The robot said:",
        "",
        "```",
        *stop.said,
        "```",
    ]
    return "\n".join(lines) + "\n"


def _table_line(row: Row) -> str:
    of = row.summary
    cells = [
        row.robot, row.beside, f"{row.learner_cpu:.2f}" if row.learner_cpu else "",
        of["ticks"], _ms(of["lateness_p50_s"]), _ms(of["lateness_p99_s"]),
        _ms(of["lateness_max_s"]), of["missed"], of["held"], of["chunks"], of["chunks_stale"],
        f"{of['delay_ticks_mean']:.2f}", f"{of['delay_ticks_p99']:.0f}", of["delay_ticks_max"],
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


if __name__ == "__main__":
    main()
