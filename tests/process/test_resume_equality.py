"""One seed, fixed threads: a run that was killed and resumed learns bit for bit the same."""

import hashlib
from pathlib import Path

import pytest
from toy_run import Kill, ToyRun, finish_run

UPDATES = 4  # two tasks of two iterations, by the smoke budget

pytestmark = pytest.mark.slow


def adapter_hashes(run: ToyRun) -> dict[str, str]:
    """SHA-256 of every published adapter's weights, by version."""
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run.records.run_dir / "adapters").glob("*/adapter_model.safetensors")
    }


def test_kills_change_no_adapter(undisturbed: ToyRun, killed: ToyRun) -> None:
    expected = adapter_hashes(undisturbed)
    assert len(set(expected.values())) == UPDATES  # each update changed the weights
    assert adapter_hashes(killed) == expected


def test_a_critic_survives_the_death_of_its_learner(tmp_path: Path, model_dir: Path) -> None:
    settings = ["algorithm=ppo-nano", "task_order=[0]", "learner.evaluation.greedy=false"]
    runs = [
        finish_run(tmp_path / name, model_dir, kills, settings)
        for name, kills in (("undisturbed", []), ("killed", [Kill("learner", training_ends=10)]))
    ]
    expected = adapter_hashes(runs[0])
    assert len(set(expected.values())) == 2  # one task of two iterations
    assert adapter_hashes(runs[1]) == expected


def test_acting_ahead_survives_the_death_of_learner_and_agent(
    tmp_path: Path, model_dir: Path
) -> None:
    settings = [
        "algorithm=grpo-async-nano", "task_order=[0]", "learner.algorithm.iterations_per_task=4",
        "learner.evaluation.greedy=false",
    ]  # fmt: skip
    kills = [Kill("learner", training_ends=12), Kill("agent", training_ends=20)]
    runs = [
        finish_run(tmp_path / name, model_dir, chosen, settings)
        for name, chosen in (("undisturbed", []), ("killed", kills))
    ]
    expected = adapter_hashes(runs[0])
    assert len(set(expected.values())) == 4
    assert adapter_hashes(runs[1]) == expected


def test_kills_change_no_measured_rate(undisturbed: ToyRun, killed: ToyRun) -> None:
    for matrix in ("matrix", "greedy"):
        assert killed.records.results[matrix] == undisturbed.records.results[matrix]
