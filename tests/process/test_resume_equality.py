"""One seed, fixed threads: a run that was killed and resumed learns bit for bit the same."""

import hashlib

import pytest
from toy_run import ToyRun

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


def test_kills_change_no_measured_rate(undisturbed: ToyRun, killed: ToyRun) -> None:
    for matrix in ("matrix", "greedy"):
        assert killed.records.results[matrix] == undisturbed.records.results[matrix]
