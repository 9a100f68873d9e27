"""No setting that is given by hand is quietly replaced, however it is spelled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import setup
from deploy.local import run, supervisor
from deploy.local.composition import compose_tree
from deploy.local.overrides import refuse_overrides
from deploy.local.placement import BadSetting, Placement, local_placement, place_processes
from deploy.local.settings import compose_run
from deploy.setup import BAD_INPUT, TARGETS, service_placement

PLACES = {
    "run": local_placement,
    **{
        name: service_placement(target, Path("/state"), Path("/keys"))
        for name, target in TARGETS.items()
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The setting for a folder that looks like a model."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    return f"model.model_dir={folder}"


def refusal(place: Callable[[Path, int], Placement], overrides: list[str]) -> str:
    with pytest.raises(BadSetting) as refused:
        compose_run(overrides, place)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def differing(below: Any, above: Any, key: str) -> list[str]:
    """Dotted keys of what `above` has another value of than `below`."""
    if isinstance(below, dict) and isinstance(above, dict):
        return [d for k, v in above.items() for d in differing(below.get(k), v, f"{key}.{k}")]
    return [key] if below != above else []


@pytest.mark.parametrize("name", PLACES)
def test_whatever_becomes_of_the_composition_is_refused_by_hand(name: str, model: str) -> None:
    tree = compose_tree([model])
    placement = PLACES[name](Path("/state"), 1)
    placed = tree | placement.run
    processes = place_processes(Path("/state"), placed, placement)
    pairs = [(p.section, tree[p.section], p.settings(tree)) for p in processes.values()]
    keys = [key for section, below, above in pairs for key in differing(below, above, section)]
    assert {"agent.state_dir", "agent.operator_endpoint", "sim.log_path"} <= set(keys)
    for key in [*keys, *placement.run, *placement.unused]:
        by_hand = copy.deepcopy(tree)
        *sections, last = key.split(".")
        node = by_hand
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = "by hand"
        with pytest.raises(BadSetting, match=rf"^\+\+{key}=by-hand: .*; drop it"):
            refuse_overrides([f"++{key}=by-hand"], by_hand, placement, processes.values())


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("agent.http_port=0", "agent.http_port"),
        ("++agent.http_port=0", "agent.http_port"),
        ("~agent.http_port", "agent.http_port"),
        ("~agent.http_port=0", "agent.http_port"),
        ("agent={http_port: 0}", "agent.http_port"),
        ("~agent", "agent.state_dir"),
        ("agent=null", "agent.state_dir"),
        ("agent.policy={model_dir: elsewhere}", "agent.policy.model_dir"),
        ("++agent={tasks: {pick_red_tray: {suite: arm}}}", "agent.tasks.pick_red_tray"),
        ("+agent.tasks.pick_red_tray.suite=arm", "agent.tasks.pick_red_tray"),
        ("+model@learner=nano-tabletop", "learner.model_dir"),
        ("+suite@learner.suite=toy", "learner.suite.train_tasks"),
        ("learner.suite.train_tasks=[push_left]", "learner.suite.train_tasks"),
        ("~learner.suite", "learner.suite.train_tasks"),
        ("learner.exit_when_done=true", "learner.exit_when_done"),
        ("sim.keys_dir=/mine", "sim.keys_dir"),
    ],
)
def test_every_spelling_is_understood(override: str, key: str, model: str) -> None:
    text = refusal(PLACES["compose"], [model, override])
    assert text.startswith(f"{override}: this command chooses {key}")
    assert "; drop it" in text


@pytest.mark.parametrize(
    ("name", "override", "way_out"),
    [
        ("run", "sim.endpoint=tcp://127.0.0.1:5555", "perennial serve, learn and sim"),
        ("run", "agent.state_dir=/elsewhere", "run_dir=FOLDER"),
        ("run", "learner.model_dir=/elsewhere", "model.model_dir=FOLDER"),
        ("run", "sim.client_id=mine", "drop it"),
        ("run", "agent.die_with_parent=false", "drop it"),
        ("run", "probe.task=push_left", "drop it"),
        ("run", "sim.stop_at_success=false", "give suite.stop_at_success="),
        ("run", "learner.suite.stop_at_success=false", "give suite.stop_at_success="),
        ("run", "sim.protocol=vlacrl", "give suite/protocol=NAME"),
        ("run", "suite.protocol=vlacrl", "give suite/protocol=NAME"),
        ("run", "sim.suite=tabletop-camera", "suite.perturb="),
        ("compose", "agent.robots_endpoint=tcp://0.0.0.0:7", "ROBOTS_ADDRESS"),
        ("compose", "workers=3", "SIM_REPLICAS"),
        ("compose", "run_dir=/elsewhere", "--state-dir FOLDER"),
        ("compose", "agent.keys_dir=/elsewhere", "--keys-dir FOLDER"),
        ("compose", "probe_rate_hz=5", "perennial run has a probe"),
        ("compose", "probe.rate_hz=5", "no effect here; drop it; perennial run has a probe"),
        ("systemd", "workers=3", "perennial-sim@N"),
        ("systemd", "agent.http_port=0", "systemctl edit"),
        ("systemd", "sim.heartbeat_path=/run/beat", "systemctl edit"),
        ("systemd", "restart_limit=1", "no effect here; drop it; the units have Restart="),
    ],
)
def test_a_refusal_names_the_way_out(name: str, override: str, way_out: str, model: str) -> None:
    text = refusal(PLACES[name], [model, override])
    assert text.startswith(f"{override}: ")
    assert way_out in text


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("run", ["agent.http_port=7777", "learner.http_port=7778", "sim.client_id=sim-0"]),
        ("run", ["agent.die_with_parent=true", "+agent.tasks.pour.suite=arm", "~agent.lease_s"]),
        ("compose", ["agent.http_port=0", "++agent.http_port=9100", "workers=1", "report=false"]),
        ("systemd", ["agent={max_batch: 7, http_port: 9100}", "run_dir=/state"]),
        ("systemd", ["suite.train_tasks=[push_left]", "learner.suite.train_tasks=[push_left]"]),
    ],
    ids=" ".join,
)
def test_what_is_not_chosen_or_chosen_so_may_be_given(
    name: str, overrides: list[str], model: str
) -> None:
    assert compose_run([model, *overrides], PLACES[name]).overrides == (model, *overrides)


def test_a_setting_that_nobody_chooses_arrives(model: str) -> None:
    words = ["agent.http_port=7777", "++sim={envs: 3}", "+agent.tasks.pour.suite=arm"]
    processes = compose_run([model, *words]).processes
    assert processes["agent"]["http_port"] == 7777
    assert processes["sim-0"]["envs"] == 3
    assert processes["agent"]["tasks"]["pour"] == {"suite": "arm"}


def test_a_run_without_one_of_its_settings_is_refused(model: str) -> None:
    assert refusal(local_placement, [model, "~report"]) == "report: a run needs it; drop ~report"


def test_a_run_says_it_in_one_line_and_begins_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "StopSignal", lambda: None)
    words = [model, f"run_dir={tmp_path / 'run'}", "sim.endpoint=tcp://127.0.0.1:5555"]
    assert run.main(words) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("perennial run: sim.endpoint=tcp://127.0.0.1:5555: this command chooses")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_setup_says_it_in_one_line_and_makes_nothing(
    target: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--state-dir", str(tmp_path / "state"), "--keys-dir", str(tmp_path / "keys")]
    assert setup.main([target, *folders, model, "++agent.http_port=0"]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("perennial setup: ++agent.http_port=0: this command chooses")
    assert list(tmp_path.iterdir()) == []
