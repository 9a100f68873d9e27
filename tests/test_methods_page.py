"""docs/methods.md: its commands compose, its defaults are shipped, what it names is there."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from pages import ROOT, missing_links, missing_names, shell_lines

from deploy.local.placement import BadSetting
from deploy.local.settings import compose_run
from learner.config import LearnerConfig

pytestmark = pytest.mark.checks

PAGE = (ROOT / "docs" / "methods.md").read_text()
RUNS = ("perennial run", "perennial eval")
_ROW = re.compile(r"^\| `([\w.]+)` \| ([^|]+) \|", re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What looks like a model and like an adapter; composing reads no more than this."""
    folder = tmp_path_factory.mktemp("DIR")
    (folder / "config.json").write_text("{}")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    return folder


def sections() -> dict[str, str]:
    """Title -> text of each method."""
    found = re.split(r"^#+ (.+)\n", PAGE, flags=re.M)
    return dict(zip(found[1::2], found[2::2], strict=True))


@cache
def compose_learner(command: str, folder: Path) -> dict[str, Any]:
    """The learner's settings in a run of this command; checked by the schema."""
    program, *words = command.replace("DIR", str(folder)).split()[1:]
    given = [f"model.model_dir={folder}", *(["budget=eval"] if program == "eval" else [])]
    values = compose_run([*given, *words]).processes["learner"]
    schema = OmegaConf.structured(LearnerConfig)
    assert isinstance(OmegaConf.to_object(OmegaConf.merge(schema, values)), LearnerConfig)
    return values


def composes(command: str, folder: Path) -> bool:
    try:
        compose_learner(command, folder)
    except BadSetting:
        return False
    return True


def read_number(text: str) -> Any:
    """As YAML, which would take 1e6 for a word."""
    try:
        return float(text)
    except ValueError:
        return yaml.safe_load(text)


def test_every_command_composes(folder: Path) -> None:
    commands = [line for line in shell_lines(PAGE) if line.startswith(RUNS)]
    assert len(commands) > 20
    assert not [command for command in commands if not composes(command, folder)]


def test_every_default_is_what_the_command_above_it_gives(folder: Path) -> None:
    wrong, count = [], 0
    for title, text in sections().items():
        commands = [line for line in shell_lines(text) if line.startswith(RUNS)]
        rows = _ROW.findall(text)
        if not rows:
            continue
        learner = compose_learner(commands[0], folder)
        for key, stated in rows:
            value: Any = learner
            for part in key.split("."):
                value = value[part]
            count += 1
            if read_number(stated.strip()) != value:
                wrong.append(f"{title}: {key} is {value}, the page says {stated}")
    assert count > 30
    assert not wrong


def test_every_setting_of_a_method_is_listed() -> None:
    """Of the sections that a method has to itself."""
    listed = {key for key, _ in _ROW.findall(PAGE)}
    for name in ("ppo", "dpo", "asynchronous"):
        check_section("algorithm", name, listed)
    for path in (ROOT / "configs" / "continual").glob("*.yaml"):
        for name in (OmegaConf.load(path) or {}).keys() - {"defaults", "method"}:
            check_section("continual", str(name), listed)


def check_section(group: str, name: str, listed: set[str]) -> None:
    for path in (ROOT / "configs" / group).glob("*.yaml"):
        section = OmegaConf.load(path).get(name)
        missing = {f"{group}.{name}.{key}" for key in section or {}} - listed
        assert not missing, path


def test_what_the_page_names_is_there() -> None:
    assert not missing_names(PAGE) | missing_links(PAGE, ROOT / "docs")


@pytest.mark.parametrize("name", ["adding-a-method", "figures", "presets"])
def test_its_neighbours_lead_somewhere(name: str) -> None:
    assert not missing_links((ROOT / "docs" / f"{name}.md").read_text(), ROOT / "docs")
