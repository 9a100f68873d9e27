"""The runs that the tests of this folder examine; each is made once."""

from pathlib import Path

import pytest
from micro_model import write_micro_model
from toy_run import Kill, ToyRun, finish_run


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro model's folder."""
    folder = tmp_path_factory.mktemp("micro") / "model"
    write_micro_model(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> ToyRun:
    """A run that nobody disturbed."""
    return finish_run(tmp_path_factory.mktemp("undisturbed"), model_dir)


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> ToyRun:
    """The same run, each process killed while an update's eight episodes are being collected."""
    kills = [
        Kill("agent", training_ends=2),
        Kill("learner", training_ends=10),
        Kill("sim-0", training_ends=18),
    ]
    return finish_run(tmp_path_factory.mktemp("killed"), model_dir, kills)
