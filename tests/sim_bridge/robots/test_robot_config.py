"""The settings of a robot's process, in the shipped file and in the documentation."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from agent.process import load_config
from agent.wire.errors import ConfigError
from sim_bridge.robots import cdr
from sim_bridge.robots.config import RestConfig, RobotConfig, Ros2Config
from sim_bridge.robots.robots import make_robot

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "configs" / "robot.yaml"
BLOCKS = re.findall(
    r"```yaml\n(robot: .*?)```", (ROOT / "docs" / "adding-a-robot.md").read_text(), re.DOTALL
)


def test_the_shipped_file_lists_every_setting_with_its_default() -> None:
    listed = OmegaConf.to_container(OmegaConf.load(SHIPPED))
    assert isinstance(listed, dict)
    config = load_config(RobotConfig, SHIPPED, [])
    assert listed.keys() == {field.name for field in fields(RobotConfig)}
    for field in fields(RobotConfig):
        section = getattr(config, field.name)
        if is_dataclass(section):
            assert listed[field.name].keys() == {each.name for each in fields(section)}
            assert section == type(section)(), field.name


def test_the_documented_settings_are_ones() -> None:
    assert [block.split()[1] for block in BLOCKS] == ["lerobot", "ros2"]


@pytest.mark.parametrize("block", BLOCKS)
def test_documented_settings_fit_and_are_consistent(block: str, tmp_path: Path) -> None:
    path = tmp_path / "robot.yaml"
    path.write_text(block)
    config = load_config(RobotConfig, path, ["task=reach"])
    sizes = {len(config.rest.home)}
    if config.robot == "lerobot":
        sizes.add(len(config.lerobot.actions))
    else:
        sizes.add(sum(each.size for each in config.ros2.commands))
        kinds = [each.type for each in (*config.ros2.cameras.values(), *config.ros2.proprio)]
        assert kinds == [cdr.IMAGE, cdr.JOINT_STATE]
    assert sizes == {len(config.rest.home)}


def test_a_missing_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    monkeypatch.setitem(sys.modules, "lerobot.robots", None)
    monkeypatch.setitem(sys.modules, "draccus", ModuleType("draccus"))
    config = RobotConfig(robot="lerobot", task="reach")
    with pytest.raises(ConfigError, match=r"pip install 'perennial-vla\[lerobot\]'"):
        make_robot(config, lambda: False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"robot": "lerobto"}, "robot: expected one of simulated, replay, lerobot, ros2"),
        ({"ros2": Ros2Config(transport="fastdds")}, "ros2.transport: expected one of auto"),
        ({"ros2": Ros2Config(domain=233)}, "ros2.domain: expected 0 to 232"),
        ({"rest": RestConfig(home_s=0.0)}, "rest.home_s: expected 0.1"),
    ],
)
def test_values_that_cannot_work_are_refused(settings: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        RobotConfig(task="reach", **settings)
