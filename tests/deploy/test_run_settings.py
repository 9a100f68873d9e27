"""The settings of a run, by hand: one rule for texts and paths, down to the processes' files."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.process import load_config
from deploy import setup
from deploy.bench.grid import parse_grid
from deploy.local.composition import TABLES, compose_tree
from deploy.local.placement import BadSetting
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from learner.config import LearnerConfig
from sim_bridge.config import ProbeConfig, SimConfig

SCHEMAS = {
    "agent": AgentConfig,
    "learner": LearnerConfig,
    "sim": SimConfig,
    "probe": ProbeConfig,
}
NAMES = ["epoch=9-step=8", "模型", "a (copy)", "run#3", "it's", "20261201", "0012", "1e5", "null",
         "a,b", "[x]", "a\\", "${seed}", "  ", "a: b"]  # fmt: skip


def fields_of(schema: type, kind: type, name: str) -> Iterator[str]:
    """Dotted keys of the fields of `schema` that have this type, in its sections too."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], f"{name}.{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from fields_of(typing.cast(type, hint), kind, key)
        elif kind in (hint, typing.get_origin(hint)):
            yield key


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = compose_run(["suite=toy", f"run_dir={name}"])
    assert run.settings.run_dir == tmp_path / name
    assert run.processes["agent"]["state_dir"] == str(tmp_path / name / "agent")
    assert parse_grid(["suite=toy", "method=sequential", f"out={name}"]).out == tmp_path / name


def test_what_one_run_is_given_is_no_setting_of_the_next() -> None:
    words = ["suite=toy", "method=ewc"]
    first = compose_tree(words)
    given = ["seed=7", "agent.max_batch=3", "learner.continual.ewc.weight=2"]
    changed = compose_tree([*words, *given])
    assert (changed["seed"], changed["agent"]["max_batch"]) == (7, 3)
    assert compose_tree(words) == first
    assert first["seed"] != 7


@pytest.mark.parametrize("text", ["pick, then place", "don't", "heb die Tasse auf", "0012", "${x}"])
def test_a_childs_file_holds_what_was_typed(text: str, tmp_path: Path) -> None:
    words = ["suite=toy", f"run_dir={tmp_path}/it's #1", f"agent.tasks.pour.instruction={text}"]
    words += [f"learner.unnorm_key={text}", f"model.architecture.variant={text}"]
    run = compose_run(words)
    with RunFolder(run.settings.run_dir).lock():
        RunFolder(run.settings.run_dir).prepare(run, {})
    config = run.settings.run_dir / "config"
    agent = load_config(AgentConfig, config / "agent.yaml", [])
    assert agent.tasks["pour"].instruction == text
    assert agent.policy.architecture["variant"] == text
    assert agent.state_dir == f"{tmp_path}/it's #1/agent"
    assert load_config(LearnerConfig, config / "learner.yaml", []).unnorm_key == text


def test_paths_begin_at_home_or_where_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, model = tmp_path / "home", tmp_path / "home" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (home / "adapter").mkdir()
    (home / "adapter" / "adapter_config.json").write_text('{"r": 40}')
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for folder in ("~/model", "model", "./model"):
        run = compose_run(["suite=toy", f"model.model_dir={folder}", "run_dir=~/r"])
        assert run.processes["agent"]["policy"]["model_dir"] == str(model)
        assert run.settings.run_dir == home / "r"
    for folder in ("~/adapter", "adapter"):
        run = compose_run(["suite=toy", "budget=eval", f"learner.start_adapter={folder}"])
        assert run.processes["agent"]["policy"]["adapter_rank"] == 40


def test_services_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    words = ["suite=toy", "learner.sft.demonstrations=[demos,~/more]", "learner.start_adapter="]
    assert setup.main(["systemd", "--state-dir=st#te", "--keys-dir=keys", *words]) == 0
    path = tmp_path / "st#te" / "config" / "learner.yaml"
    learner = load_config(LearnerConfig, path, [])
    assert learner.sft.demonstrations == [str(tmp_path / "demos"), str(tmp_path / "home" / "more")]
    assert learner.start_adapter == ""
    assert learner.keys_dir == str(tmp_path / "keys" / "learner")
    monkeypatch.setenv("PERENNIAL_INSTANCE", "7")
    sim = load_config(SimConfig, path.with_name("sim.yaml"), [])
    assert sim.client_id == "sim-7"
    assert sim.log_path == str(tmp_path / "st#te" / "sim" / "sim-7" / "client.jsonl")


def hold_folder(words: list[str]) -> None:
    """As far as a run gets that is refused."""
    with RunFolder(compose_run(words).settings.run_dir).lock():
        pass


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("run_dir=", "run_dir: name a folder"),
        ("run_dir=~nobody-at-all/x", "names no user's home"),
        ("suite=tabeltop", "unknown suite 'tabeltop'; did you mean 'tabletop'?"),
        ("suite=", "unknown suite ''; there are:"),
        ("suite/protocol=nope", "unknown suite/protocol 'nope'"),
        ("suite/protocol=openvla", "no such choice with the others"),
        ("+sede=3", "unknown setting 'sede'; did you mean 'seed'?"),
        ("hydra.run.dir=x", "unknown setting 'hydra.run.dir'"),
        ("seed=1,2", "seed: expected one value, got several"),
        ("seed=[1", "seed: cannot read '[1'"),
        ("report=maybe", "report: expected true or false"),
        ("agent.tasks={a: {instruction: b, then c}}", "agent.tasks.NAME=TEXT"),
        ("learner.cameras=front", "expected a list in brackets"),
        ("run_dir=\udcff", "is not written in UTF-8"),
        ("run_dir=" + "x" * 5000, "run_dir"),
        ("model.model_dir=" + "x" * 300, "no config.json"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_with_the_way_out(word: str, expected: str) -> None:
    suite = [] if word.startswith("suite=") else ["suite=toy"]
    with pytest.raises(BadSetting) as refused:
        hold_folder([*suite, word])
    text = str(refused.value)
    assert expected in text
    assert "\n" not in text


def test_a_choice_may_be_taken_back() -> None:
    assert compose_tree(["suite=toy", "preset=null"]) == compose_tree(["suite=toy"])


def test_a_table_of_a_process_takes_any_entry_in_a_run_as_well() -> None:
    open_ones = tuple(f"{table}." for table in TABLES)
    for name, schema in SCHEMAS.items():
        for key in fields_of(schema, dict, name):
            assert f"{key}.".startswith(open_ones), key
    tree = compose_tree(["suite=toy", "sim.gymnasium.arguments.path=/a=b", "agent.tasks={a: {}}"])
    assert tree["sim"]["gymnasium"]["arguments"] == {"path": "/a=b"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_a_text_for_a_process_is_one_in_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = tmp_path / "0012" / "adapter_config.json"  # as learner.start_adapter
    adapter.parent.mkdir()
    adapter.write_text('{"r": 4}')
    inside = tuple(f"{table}." for table in TABLES)
    keys = [key for key in fields_of(SCHEMAS[name], str, name) if not key.startswith(inside)]
    tree: Any = compose_tree(["suite=toy", *(f"{key}=0012" for key in keys)])
    for key in keys:
        node = tree
        for part in key.split("."):
            node = node[part]
        assert node == "0012", key
