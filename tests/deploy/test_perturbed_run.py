"""A perturbed run has a suite, a folder and orders of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.placement import BadSetting
from deploy.local.settings import RunConfig, compose_run

pytestmark = pytest.mark.checks


def compose(folder: Path, *overrides: str) -> RunConfig:
    (folder / "config.json").write_text("{}")
    return compose_run([f"model.model_dir={folder}", *overrides])


def test_all_processes_of_a_perturbed_run_speak_of_the_same_suite(tmp_path: Path) -> None:
    run = compose(tmp_path, "suite=toy", "suite.perturb=[noise_50,instruction]")
    name = "toy-instruction-noise_50"
    assert run.processes["learner"]["suite"]["name"] == name
    assert run.processes["sim-0"]["suite"] == name
    assert {task["suite"] for task in run.processes["agent"]["tasks"].values()} == {name}
    assert run.settings.run_dir.name == f"{name}-seed0"


def test_without_perturbations_nothing_is_named_otherwise(tmp_path: Path) -> None:
    run = compose(tmp_path, "suite=toy")
    assert run.processes["learner"]["suite"]["name"] == run.processes["sim-0"]["suite"] == "toy"
    assert run.settings.run_dir.name == "toy-seed0"


def test_perturbations_are_a_list_of_names(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="names like"):
        compose(tmp_path, "suite.perturb=camera")
