"""The suites' configs against the distribution, which they describe for machines without it."""

from __future__ import annotations

import pytest

from deploy.local.settings import compose_run
from sim_bridge.libero.protocol import PROTOCOLS
from sim_bridge.libero.tasks import SUITES, suite_tasks


@pytest.mark.parametrize("suite", SUITES)
def test_tasks_and_instructions_are_the_distributions(suite: str) -> None:
    configured = compose_run([f"suite={suite}"]).tree["suite"]
    assert [(task["slug"], task["instruction"]) for task in configured["tasks"]] == [
        (task.slug, task.instruction) for task in suite_tasks(suite)
    ]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_uses_as_many_states_as_it_has(name: str) -> None:
    protocol = PROTOCOLS[name]
    suite = compose_run(["suite=libero_goal", f"suite/protocol={name}"]).tree["suite"]
    assert suite["protocol"] == name
    assert suite["eval_init_states"] == len(protocol.states["eval"])
    assert suite["train_init_states"] == len(protocol.states.get("train", ()))
    assert {task["horizon_steps"] for task in suite["tasks"]} == {suite["horizons"]["libero_goal"]}
