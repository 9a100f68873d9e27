"""Where the wall time of a GRPO iteration goes, measured in a real run.

python -m benchmarks.iteration [ITERATIONS]   writes benchmarks/reports/iteration.md

Starts `perennial run` on one tabletop task with as little evaluation as there can be. Everything
is measured over one window, from the end of the first iteration to the end of the last. The
learner tells its parts in progress.jsonl; the agent's /metrics tells how long the policy computed
and what the worker told about its bodies; psutil tells the processes' CPU time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.machine import cpu_model
from deploy.local.processes import module_command, module_environment
from deploy.local.recorded import read_state
from deploy.local.tail import JsonTail

REPORT = Path(__file__).parent / "reports" / "iteration.md"
OVERRIDES = (
    "suite=tabletop", "task_order=[0]", "workers=1", "probe_rate_hz=0", "report=false",
    "suite.held_out_tasks=[]", "suite.eval_init_states=1", "learner.evaluation.greedy=false",
    "learner.evaluation.slots_per_state=1",
)  # fmt: skip
ITERATION_LIMIT_S = 600.0  # for one iteration, and for the start
STOP_LIMIT_S = 60.0
HTTP_LIMIT_S = 30.0
POLL_S = 0.1  # how late a counter may be read; the worker tells its own once a second
SUPERVISOR, OTHERS = "supervisor", "all else on the machine"

# (process, stage) -> the metric with its labels that counts the seconds
STAGE_METRICS = {
    ("worker", "simulate"): ("perennial_sim_seconds_total", (("part", "step"),)),
    ("worker", "render"): ("perennial_sim_seconds_total", (("part", "render"),)),
    ("worker", "wait for actions"): ("perennial_sim_seconds_total", (("part", "wait"),)),
    ("agent", "infer"): ("perennial_inference_busy_seconds_total", ()),
}
# stage -> its key in the time_s of the learner's progress lines
LEARNER_STAGES = {"learn": "learn", "publish": "publish", "wait for episodes": "wait"}
Stage = tuple[str, str]  # (process, stage)


@dataclass(frozen=True)
class Sample:
    """Counters that only grow, at one moment.

    at_s: monotonic time; stages_s: seconds so far, of agent and worker; cpu_s: process -> CPU
    seconds so far, and `OTHERS` for what the machine computed besides.
    """

    at_s: float
    stages_s: dict[Stage, float]
    cpu_s: dict[str, float]


@dataclass(frozen=True)
class Breakdown:
    """An average iteration of the window, in seconds; stages_s: wall time, cpu_s: CPU time."""

    iterations: int
    wall_s: float
    episodes: float
    stages_s: dict[Stage, float]
    cpu_s: dict[str, float]


def main() -> None:
    """Measures, prints, and writes the report."""
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    if iterations < 1:
        raise SystemExit(f"ITERATIONS: expected at least 1, got {iterations}")
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as folder:
        run_dir = Path(folder) / "run"
        with _running(run_dir, iterations + 1) as run:
            breakdown = break_down(*_observe(run, run_dir, iterations))
        report = render(breakdown, read_state(run_dir)["versions"])
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report, encoding="utf-8")
    print(report)


# ---- measuring -------------------------------------------------------------------------------


@contextmanager
def _running(run_dir: Path, iterations: int) -> Iterator[subprocess.Popen[bytes]]:
    """A run that would train one task for so many iterations; it is stopped at the end."""
    last = f"learner.algorithm.iterations_per_task={iterations}"
    words = module_command("deploy.local.cli", ["run", f"run_dir={run_dir}", *OVERRIDES, last])
    with run_dir.with_suffix(".log").open("wb") as log:
        run = subprocess.Popen(words, stdout=log, stderr=log, env=module_environment())
    try:
        yield run
    finally:
        run.terminate()
        try:
            run.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()


def _observe(
    run: subprocess.Popen[bytes], run_dir: Path, iterations: int
) -> tuple[Sample, Sample, list[dict[str, Any]]]:
    """Samples at both ends of the window, and the progress lines of the iterations within.

    Raises SystemExit if the run ends before, or an iteration takes too long.
    """
    progress = JsonTail(run_dir / "learner" / "progress.jsonl")
    events: list[dict[str, Any]] = []
    samples: list[Sample] = []
    deadline_s = time.monotonic() + ITERATION_LIMIT_S
    while len(events) <= iterations:
        new = [line for line in progress.read() if line["event"] == "iteration"]
        if new:
            events += new
            samples.append(_take_sample(run.pid, run_dir))
            deadline_s = time.monotonic() + ITERATION_LIMIT_S
        elif run.poll() is not None:
            said = run_dir.with_suffix(".log").read_text(errors="replace").strip()
            raise SystemExit(f"the run ended early: {said[-500:] or 'it printed nothing'}")
        elif time.monotonic() > deadline_s:
            raise SystemExit(f"no iteration ended within {ITERATION_LIMIT_S:.0f} s")
        time.sleep(POLL_S)
    return samples[0], samples[-1], events[1:]


def _take_sample(pid: int, run_dir: Path) -> Sample:
    at_s = time.monotonic()
    machine = psutil.cpu_times()
    cpu_s: defaultdict[str, float] = defaultdict(float)
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        cpu_s[process_name(process.cmdline())] += times.user + times.system
    busy_s = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
    cpu_s[OTHERS] = busy_s - sum(cpu_s.values())
    http = json.loads((run_dir / "agent" / "endpoints.json").read_text())["http"]
    with urllib.request.urlopen(f"{http}/metrics", timeout=HTTP_LIMIT_S) as answer:
        stages_s = read_stages(answer.read().decode())
    return Sample(at_s, stages_s, dict(cpu_s))


def process_name(words: Sequence[str]) -> str:
    """Name of a run's process from its command line: its settings' file is called after it."""
    return Path(words[-1]).stem if "--config" in words else SUPERVISOR


def read_stages(exposition: str) -> dict[Stage, float]:
    """Seconds so far, from the agent's /metrics. Raises ValueError if a stage is missing."""
    values = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }
    missing = [metric for metric in STAGE_METRICS.values() if metric not in values]
    if missing:
        raise ValueError(f"/metrics: expected {missing}, which are not there")
    return {stage: values[metric] for stage, metric in STAGE_METRICS.items()}


# ---- reporting -------------------------------------------------------------------------------


def break_down(before: Sample, after: Sample, events: list[dict[str, Any]]) -> Breakdown:
    """The average of the iterations that `events`, progress lines, tell of.

    Worker and learner do one thing at a time: what their stages leave of an iteration is the rest.
    Raises ValueError if a process was started again in between, which loses its counters.
    """
    count = len(events)
    wall_s = (after.at_s - before.at_s) / count
    stages_s = {
        stage: (after.stages_s[stage] - before.stages_s[stage]) / count for stage in STAGE_METRICS
    }
    for stage, key in LEARNER_STAGES.items():
        stages_s["learner", stage] = sum(event["time_s"][key] for event in events) / count
    for process in ("worker", "learner"):
        known_s = sum(seconds for (of, _), seconds in stages_s.items() if of == process)
        stages_s[process, "rest"] = max(0.0, wall_s - known_s)
    cpu_s = {name: (after.cpu_s[name] - before.cpu_s[name]) / count for name in before.cpu_s}
    cpu_s[OTHERS] = max(0.0, cpu_s[OTHERS])  # a difference of clocks that tick every 10 ms
    if min(*stages_s.values(), *cpu_s.values()) < 0:
        raise ValueError("a counter went back: a process was started again; measure once more")
    episodes = sum(event["trials"] for event in events) / count
    return Breakdown(count, wall_s, episodes, stages_s, cpu_s)


def render(average: Breakdown, versions: dict[str, str]) -> str:
    """The report, in Markdown."""
    wall_s = average.wall_s
    lines = [
        "# Where the time of a GRPO iteration goes",
        "",
        f"`python -m benchmarks.iteration {average.iterations}`: a real `perennial run` with the "
        "nano policy on one tabletop",
        "task, from the end of its first iteration to the end of its last, so without start-up and",
        f"evaluation. Iterations measured: {average.iterations}; one took {wall_s:.1f} s and "
        f"{average.episodes:.0f} episodes on average.",
        f"{os.cpu_count()} cores ({cpu_model()}); {_listing(versions)}.",
        "",
        "Processes work at the same time: only the stages of the worker and those of the learner",
        "each add up to the iteration; the agent waits whenever it does not infer. These are wall",
        "times, so a stage that has to wait for a core lasts longer. `simulate` includes resets;",
        "`render` is the whole observation, both cameras and proprio; the worker's `rest` is",
        "messages and its durable log. The worker tells its times once a second.",
        "",
        "| process | stage | s per iteration | share of wall time |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {process} | {stage} | {seconds:.2f} | {seconds / wall_s:.0%} |"
        for (process, stage), seconds in sorted(average.stages_s.items(), key=_by_process)
    ]
    lines += [
        "",
        "CPU time over the same window, all threads together:",
        "",
        "| process | CPU s per iteration | cores kept busy |",
        "|---|---|---|",
    ]
    own_s = {name: seconds for name, seconds in average.cpu_s.items() if name != OTHERS}
    table_s = {**own_s, "the run together": sum(own_s.values()), OTHERS: average.cpu_s[OTHERS]}
    lines += [
        f"| {name} | {seconds:.2f} | {seconds / wall_s:.2f} |" for name, seconds in table_s.items()
    ]
    return "\n".join(lines) + "\n"


def _listing(versions: dict[str, str]) -> str:
    """The versions of Python and of the packages that are there."""
    packages = {name: version for name, version in versions.items() if name != "platform"}
    return ", ".join(f"{k} {v}" for k, v in packages.items() if v != "not installed")


def _by_process(item: tuple[Stage, float]) -> int:
    """Worker, agent, learner: the way of an observation. Stages keep their order."""
    return ("worker", "agent", "learner").index(item[0][0])


if __name__ == "__main__":
    main()
