"""Every variant goes round the whole loop: served, recorded, scored, trained, published."""

from pathlib import Path

import pytest
from micro_model import write_micro_model
from toy_run import finish_run

SETTINGS = ["task_order=[1]", "learner.evaluation.greedy=false"]
WIDE = "model.architecture.laplace_scale=0.8"  # a fresh policy must stray to succeed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("openvla", ["model.cameras=[agentview]"]),
        ("cnn", []),
        ("oft-l1", ["learner.algorithm.learn_action_scale=true", WIDE]),
    ],
)
def test_a_variant_learns_through_the_processes(
    variant: str, settings: list[str], tmp_path: Path
) -> None:
    write_micro_model(tmp_path / "model", variant)
    run = finish_run(tmp_path / "run", tmp_path / "model", settings=[*SETTINGS, *settings])
    assert len(run.records.updates) == 2
    iterations = [event for event in run.records.events if event["event"] == "iteration"]
    assert len({event["version"] for event in iterations}) == 2
    assert all(event["lp_diff_max"] <= 1e-4 for event in iterations)
    # At least one iteration had a group whose outcomes differ, and so moved the adapter.
    assert any(event["grad_norm"] > 0 for event in iterations)
