"""Every command of README, docs and the shipped files' heads composes, and gives what it says."""

import json
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pages import ROOT, run_commands, shell_lines

from agent.config import AgentConfig
from agent.model.config import OpenVLAConfig
from agent.process import load_config
from deploy.local.protocols import PICTURE_DEFAULTS, picture_path
from deploy.local.settings import RunConfig, compose_run
from learner.config import LearnerConfig
from learner.evaluation import plan_row
from sim_bridge.config import SimConfig

pytestmark = pytest.mark.checks

OWN = ("suite=NAME", "continual=l2-sp")  # of the reader, and of a page's worked example
COMMANDS = [words for words in run_commands() if not set(OWN) & set(words)]
PUBLISHED = "suite/protocol=openvla"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What looks like a model and like an adapter; composing reads no more than this."""
    folder = tmp_path_factory.mktemp("DIR")
    (folder / "config.json").write_text("{}")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    return folder


def compose(words: list[str], folder: Path) -> tuple[RunConfig, LearnerConfig]:
    """The run, and its learner's settings, checked by the schema."""
    given = [word.replace("DIR", str(folder)) for word in words if "model_dir=" not in word]
    run = compose_run([f"model.model_dir={folder}", *given])
    merged = OmegaConf.merge(OmegaConf.structured(LearnerConfig), run.processes["learner"])
    learner = OmegaConf.to_object(merged)
    assert isinstance(learner, LearnerConfig)
    sim = OmegaConf.merge(OmegaConf.structured(SimConfig), run.processes["sim-0"])
    assert isinstance(OmegaConf.to_object(sim), SimConfig)
    return run, learner


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_composes(words: list[str], folder: Path) -> None:
    run, learner = compose(words, folder)
    for word in words:
        key, _, value = word.partition("=")
        if key == "suite":
            assert run.tree["suite"]["name"] == value
        elif key == "model":
            assert run.tree["model"]["name"] == value
    if "budget=eval" in words:
        assert learner.algorithm.iterations_per_task == 0


def test_there_are_commands_for_published_checkpoints() -> None:
    assert len(COMMANDS) > 40
    assert len([words for words in COMMANDS if PUBLISHED in words]) >= 2


@pytest.mark.parametrize("words", [words for words in COMMANDS if PUBLISHED in words], ids=" ".join)
def test_a_published_checkpoint_is_measured_as_published(words: list[str], folder: Path) -> None:
    run, learner = compose(words, folder)
    policy, sim = run.processes["agent"]["policy"], run.processes["sim-0"]
    orders = [order for cell in plan_row(learner, 0, lambda task: "base") for order in cell.orders]
    assert sum(order.slots for order in orders) == 10 * 50
    assert {order.temperature for order in orders} == {0.0}
    assert {(order.task, order.init_state) for order in orders} == {
        (task.slug, state) for task in learner.suite.tasks for state in range(50)
    }
    horizon = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
    assert {order.horizon_steps for order in orders} == {horizon[learner.suite.name]}
    assert (policy["device"], policy["dtype"]) == ("cuda", "bfloat16")
    assert policy["unnorm_key"] == learner.suite.name
    assert policy["architecture"]["image_pipeline"] == "jpeg-lanczos-crop"
    assert policy["architecture"]["center_crop"] is True
    assert not policy["architecture"]["rotate_180"]
    assert (sim["image_size"], sim["renderer"], sim["mujoco"]) == (256, "exact", "3.3.2")
    assert sim["protocol"] == "openvla"
    assert learner.suite.protocol == (
        "openvla (256 px, jpeg-lanczos-crop, MuJoCo 3.3.2, exact renderer)"
    )


def test_a_served_checkpoint_of_readme_sees_what_it_was_trained_on() -> None:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = [line for line in shell_lines(text) if line.startswith("perennial serve policy.model")]
    assert lines
    for line in lines:
        policy = load_config(AgentConfig, None, shlex.split(line)[2:]).policy
        assert (policy.device, policy.dtype) == ("cuda", "bfloat16")
        assert set(policy.architecture) <= set(OpenVLAConfig.__dataclass_fields__)
        assert picture_path(policy.architecture, Path("none")) == "jpeg-lanczos-crop"


def test_what_a_folder_leaves_out_is_named_as_the_model_takes_it() -> None:
    for name, value in PICTURE_DEFAULTS.items():
        assert OpenVLAConfig.__dataclass_fields__[name].default == value


def test_one_version_of_mujoco_is_installed_stated_and_asked_for() -> None:
    wanted = SimConfig().mujoco
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"mujoco=={wanted}" in constraints
    assert (ROOT / "pyproject.toml").read_text().count(f'"mujoco=={wanted}"') == 2
    for path in (ROOT / "configs" / "suite" / "protocol").glob("*.yaml"):
        assert OmegaConf.load(path).mujoco == wanted, path
