"""A protocol changed by hand is not called by its published name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.settings import compose_run

pytestmark = pytest.mark.checks


def stated(folder: Path, *overrides: str) -> tuple[str, str]:
    """What the learner says of its rates, and what the simulators are told to do."""
    (folder / "config.json").write_text("{}")
    run = compose_run([f"model.model_dir={folder}", *overrides])
    return run.processes["learner"]["suite"]["protocol"], run.processes["sim-0"]["protocol"]


@pytest.mark.parametrize("suite", ["libero_10", "libero_90", "libero_goal_swap", "toy"])
def test_a_protocol_as_published_has_its_own_name(tmp_path: Path, suite: str) -> None:
    protocol, done = stated(tmp_path, f"suite={suite}")
    assert protocol == done


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("suite.horizon_steps=100", "openvla but horizon_steps=100"),
        ("suite.eval_init_states=5", "openvla but eval_init_states=5"),
    ],
)
def test_what_was_changed_is_named(tmp_path: Path, change: str, told: str) -> None:
    overrides = ("suite=libero_spatial", "suite/protocol=openvla", change)
    assert stated(tmp_path, *overrides) == (told, "openvla")
