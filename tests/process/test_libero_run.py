"""`make libero QUICK=1`: the whole loop on LIBERO, with the policy that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from observed_run import process
from patience import HANG_S

from deploy.local.processes import module_command

LEASE_S = 36_000  # no lease runs out while a busy machine builds an environment
RUN_LIMIT_S = 4 * HANG_S  # of a whole run
# As the quick budget and the policy have it.
PROTOCOL = (
    "disjoint but eval_init_states=1 image_size=64 renderer=fast "
    "(no reference: 64 px, bicubic, MuJoCo 3.3.2, fast renderer)"
)


@pytest.mark.slow
def test_three_libero_tasks_are_learned_in_sequence(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [
        "suite=libero_spatial", "model=nano-libero", "budget=libero-quick", "workers=2",
        "threads.learner=1", f"run_dir={run_dir}",
        f"agent.lease_s={LEASE_S}",
    ]  # fmt: skip
    command = module_command("deploy.local.run", words)
    with process(command, tmp_path / "run.log") as run:
        assert run.wait(RUN_LIMIT_S) == 0, (tmp_path / "run.log").read_text()[-3000:]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["swaps"]["count"] == len(summary["train_tasks"]) == 3
    for name, temperature in (("matrix", 1.0), ("greedy", 0.0)):
        matrix = summary[name] if name == "matrix" else summary[name]["matrix"]
        assert (matrix["protocol"], matrix["success"]) == (PROTOCOL, "once")
        assert matrix["temperature"] == temperature
    episodes = summary["episodes"]
    assert (episodes["aborted"], episodes["lost"], episodes["duplicated"]) == (0, 0, 0)
    assert sum(map(sum, summary["matrix"]["trials"])) + 6 == episodes["eval"], "6 are greedy"
