"""A run's last adapter, measured by another run, has the rates that it was published with."""

from pathlib import Path

import pytest
from micro_model import write_micro_model
from toy_run import finish_run

SHORT = ["task_order=[0,1]", "learner.evaluation.greedy=false"]


@pytest.mark.slow
def test_a_merged_adapter_is_measured_again_at_full_and_at_no_scale(tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_micro_model(model)
    learned = finish_run(tmp_path / "learned", model, settings=[*SHORT, "continual=retain"])
    rows = learned.records.results["matrix"]["successes"]
    version = learned.records.updates[-1].version
    folder = tmp_path / "learned" / "adapters" / version
    for scale, row in ((1, rows[-1]), (0, rows[0])):
        given = [f"learner.start_adapter={folder}", f"learner.start_adapter_scale={scale}"]
        settings = [*SHORT, *given, "learner.algorithm.iterations_per_task=0"]
        measured = finish_run(tmp_path / f"scale{scale}", model, settings=settings)
        assert measured.records.results["matrix"]["successes"][0] == row
        rates = [event for event in measured.records.events if event["event"] == "eval"]
        assert all(event["version"].startswith("v00001-") for event in rates)
        assert measured.records.config["agent"]["policy"]["adapter_rank"] == 4
        assert measured.records.results["settings"]["start_adapter"] == str(folder)
