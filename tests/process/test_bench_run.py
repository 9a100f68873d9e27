"""A comparison on real processes: what is shared changes no number, and neither does any kill."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from patience import HANG_S
from toy_run import SETTINGS, finish_run

from deploy.bench.results import Result, read_results
from deploy.local.processes import module_command, module_environment
from deploy.local.tail import JsonTail

OWN = [
    "learner.evaluation.greedy=false", "learner.evaluation.full_matrix=true",
    "learner.algorithm.iterations_per_task=1",
]  # fmt: skip
FIGURES, COST = "## Success, forgetting", "## Cost"  # the report's part that no clock has a say in
KILLS, SEED, POLL_S = 10, 7, 0.05
LONGEST_WAIT_S = 1.5  # from a moment in the clients' logs to the kill: into learning, copying, ...

pytestmark = pytest.mark.slow


def command(model_dir: Path, out: Path, methods: str) -> list[str]:
    own = [f"model.model_dir={model_dir}", f"out={out}", f"method={methods}", "seeds=1"]
    return module_command("deploy.bench", [*SETTINGS, *OWN, *own])


def run_bench(model_dir: Path, out: Path, methods: str) -> str:
    """What it printed."""
    words = command(model_dir, out, methods)
    environment = module_environment() | {"COLUMNS": "200"}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures(out: Path) -> str:
    """The report's part on success."""
    text = (out / "report.md").read_text()
    return text[text.index(FIGURES) : text.index(COST)]


def test_a_run_that_goes_on_from_a_shared_beginning_learns_what_a_whole_one_learns(
    tmp_path: Path, model_dir: Path
) -> None:
    out = tmp_path / "bench"
    said = run_bench(model_dir, out, "ewc")
    assert said.startswith("1 cells, 0 have a result, 1 to run\n2 beginnings that cells share")
    result = read_results(out / "results", ["ewc-seed0"])[0]["ewc-seed0"]
    whole = finish_run(tmp_path / "whole", model_dir, settings=[*OWN, "method=ewc"]).records
    assert len(set(result.adapters)) == 2  # two tasks of an iteration
    assert result.adapters == [update.version for update in whole.updates]
    for name in ("successes", "trials"):
        assert result.summary["matrix"][name] == whole.results["matrix"][name]
    assert (
        0 < result.cost["own_episodes"] < len(whole.ends) == result.summary["episodes"]["collected"]
    )
    written = (out / "report.md").read_bytes()
    assert run_bench(model_dir, out, "ewc").startswith("1 cells, 1 have a result, 0 to run\nReport")
    assert (out / "report.md").read_bytes() == written
    shutil.rmtree(out / "runs")
    before = figures(out)
    (out / "report.md").unlink()
    assert run_bench(model_dir, out, "ewc").startswith("1 cells, 1 have a result, 0 to run\nReport")
    assert figures(out) == before
    assert list((out / "runs").glob("*")) == []


@pytest.mark.long
def test_ten_kills_change_nothing_in_the_report(tmp_path: Path, model_dir: Path) -> None:
    methods = "sequential,ewc"
    run_bench(model_dir, tmp_path / "undisturbed", methods)
    rng = random.Random(SEED)
    total = count_ends(tmp_path / "undisturbed")
    for moment in sorted(rng.sample(range(1, total), KILLS)):
        disturb(command(model_dir, tmp_path / "killed", methods), tmp_path / "killed", moment, rng)
    run_bench(model_dir, tmp_path / "killed", methods)
    assert figures(tmp_path / "killed") == figures(tmp_path / "undisturbed")
    expected, found = (
        read_results(tmp_path / name / "results", ["sequential-seed0", "ewc-seed0"])[0]
        for name in ("undisturbed", "killed")
    )
    assert {n: lasting(r) for n, r in found.items()} == {n: lasting(r) for n, r in expected.items()}
    first, second = (expected[name].adapters for name in ("sequential-seed0", "ewc-seed0"))
    assert first[0] == second[0]


def disturb(words: list[str], out: Path, moment: int, rng: random.Random) -> None:
    """Starts the comparison and kills it once the clients have logged `moment` ends.

    With its whole process group, or alone: the run that it started then stops by itself.
    """
    wait_s, is_alone = rng.uniform(0, LONGEST_WAIT_S), rng.random() < 0.5
    log = (out.parent / "killed.log").open("ab")
    child = subprocess.Popen(
        words, env=module_environment(), stdout=log, stderr=log, start_new_session=True
    )
    deadline_s = time.monotonic() + HANG_S
    while count_ends(out) < moment:
        assert time.monotonic() < deadline_s
        assert child.poll() is None, (out.parent / "killed.log").read_text()
        time.sleep(POLL_S)
    time.sleep(wait_s)
    (os.kill if is_alone else os.killpg)(child.pid, signal.SIGKILL)
    child.wait()
    log.close()


def count_ends(out: Path) -> int:
    """Episodes that clients have logged, in all runs together; a copied run's count once."""
    logs = (out / "runs").glob("**/sim-*/client.jsonl")
    return len({line["episode_id"] for path in logs for line in JsonTail(path).read()})


def lasting(result: Result) -> dict[str, Any]:
    """What a kill must not change."""
    matrices = {name: result.summary[name] for name in ("matrix", "greedy")}
    return {
        "adapters": result.adapters, "curve": result.curve, "settings": result.settings, **matrices
    }  # fmt: skip
