"""What a learner is refused for before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from micro_fixtures import CAMERAS, INSTRUCTIONS, micro_config, micro_policy, write_micro_tokenizer

from agent.adapters import AdapterStore
from agent.model.checkpoint import save_model
from agent.model.lora import CONFIG_NAME, WEIGHTS_NAME
from agent.model.nano import init_nano
from agent.model.policy_model import hash_policy_model
from agent.wire.errors import ConfigError
from learner.config import LearnerConfig, SftConfig, SuiteConfig, TaskConfig
from learner.continual.settings import ContinualConfig, ErConfig
from learner.preflight import preflight


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a micro model; `adapter` beside it holds an adapter of it."""
    top = tmp_path_factory.mktemp("preflight")
    folder = top / "model"
    folder.mkdir()
    save_model(init_nano(micro_config(write_micro_tokenizer(folder)), 0), folder, step=0)
    (top / "adapter").mkdir()
    for name, content in micro_policy(top).adapter_files().items():
        (top / "adapter" / name).write_bytes(content)
    return folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> LearnerConfig:
    """Of a learner that can work."""
    tasks = [TaskConfig(f"task{i}", text, 9) for i, text in enumerate(INSTRUCTIONS[:2])]
    return LearnerConfig(
        suite=SuiteConfig("toy", tasks, [task.slug for task in tasks], []),
        model_dir=str(model),
        cameras=list(CAMERAS),
        state_dir=str(tmp_path / "learner"),
        adapters_dir=str(tmp_path / "adapters"),
    )


def measuring(config: LearnerConfig, adapter: str) -> LearnerConfig:
    """Of a run that measures an adapter and trains nothing."""
    nothing = replace(config.algorithm, iterations_per_task=0)
    return replace(config, algorithm=nothing, start_adapter=adapter)


def test_settings_that_can_work_are_taken_and_nothing_is_left(
    config: LearnerConfig, model: Path, tmp_path: Path
) -> None:
    preflight(config)
    preflight(measuring(config, str(model.parent / "adapter")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_dir": "/nowhere"}, "model_dir: .*does not exist"),
        ({"device": "nowhere"}, "device: nowhere is not there"),
        ({"keys_dir": "/nowhere"}, "/nowhere"),
        ({"operator_endpoint": "udp://x"}, "expected tcp"),
        ({"state_dir": "/proc/version/learner"}, "state_dir: "),
        ({"sft": SftConfig(["/nowhere"])}, "sft.demonstrations: .*/nowhere"),
        (
            {"continual": ContinualConfig("er", er=ErConfig(demonstrations=["/nowhere"]))},
            "er.demonstrations: .*/nowhere",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_named(
    change: dict[str, object], reason: str, config: LearnerConfig
) -> None:
    with pytest.raises(ConfigError, match=reason):
        preflight(replace(config, **change))  # type: ignore[arg-type]


def test_an_instruction_that_the_policy_cannot_read_is_named(config: LearnerConfig) -> None:
    config.suite.tasks[1].instruction = "juggle"
    with pytest.raises(ConfigError, match=r"suite\.tasks\.task1: .*'juggle'"):
        preflight(config)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def cut(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-50])


def claim_another_rank(folder: Path) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))


def take_the_weights(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()


@pytest.mark.parametrize("damage", [remove, cut, claim_another_rank, take_the_weights])
def test_a_start_adapter_that_cannot_be_served_is_named(
    damage: Callable[[Path], None], config: LearnerConfig, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model.parent / "adapter", tmp_path / "bad")
    damage(tmp_path / "bad")
    with pytest.raises(ConfigError, match="start_adapter: "):
        preflight(measuring(config, str(tmp_path / "bad")))


def test_a_start_adapter_of_another_base_is_named(
    config: LearnerConfig, model: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in (model.parent / "adapter").iterdir()}
    own = hash_policy_model(config.model_dir, config.architecture, config.cameras)
    made = {"parent": "base", "task": "a", "method": "grpo", "metrics": {}}
    store = AdapterStore(tmp_path / "store")
    good = store.publish(1, files, base_sha256=own, **made).version
    preflight(measuring(config, str(tmp_path / "store" / good)))
    files["README.md"] = b"of another"
    other = store.publish(2, files, base_sha256="1" * 64, **made).version
    with pytest.raises(ConfigError, match=r"start_adapter: .*was trained on base 111111111111"):
        preflight(measuring(config, str(tmp_path / "store" / other)))
