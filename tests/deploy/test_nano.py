"""The nano policy's recipe: its programs know every argument, and a failure ends it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from deploy.local import nano
from deploy.local.composition import CONFIGS
from deploy.local.settings import compose_run
from learner import nano as pretraining
from learner.pretrain import PretrainConfig
from sim_bridge.demos import __main__ as recording
from sim_bridge.libero import demos as libero_demos
from sim_bridge.tabletop import demos

GENERATE, PRETRAIN = "sim_bridge.demos", "learner.nano"


def test_the_programs_take_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[str, Path]] = []
    trained: list[pretraining.NanoConfig] = []
    monkeypatch.setattr(
        demos, "generate", lambda config, out, workers: recorded.append((config.operators, out))
    )
    monkeypatch.setattr(pretraining, "build", trained.append)
    for module, words in nano.tabletop_steps(Path("work"), Path("model")):
        assert not {GENERATE: recording.main, PRETRAIN: pretraining.main}[module](words)
    assert [operators for operators, _ in recorded] == ["expert", "misjudging"]
    assert [Path(*config.demos) for config in trained] == [out for _, out in recorded]
    first, second = trained
    assert (first.base, second.base, Path(second.out)) == ("", first.out, Path("model"))
    for config in trained:
        PretrainConfig(**config.pretrain)


@pytest.mark.parametrize(("name", "variant"), [("scratch", "oft-discrete"), ("cnn", "cnn")])
def test_a_baseline_knows_the_rig_of_the_nano_policy_alone(
    name: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[tuple[demos.DemoConfig, Path]] = []
    trained: list[pretraining.NanoConfig] = []
    monkeypatch.setattr(
        demos, "generate", lambda config, out, workers: recorded.append((config, out))
    )
    monkeypatch.setattr(pretraining, "build", trained.append)
    name = f"nano-{name}"
    for steps in (nano.POLICIES["nano"], nano.POLICIES[name]):
        for module, words in steps(Path("work"), Path("model")):
            assert not {GENERATE: recording.main, PRETRAIN: pretraining.main}[module](words)
    assert recorded[2] == recorded[1]
    (training,) = trained[2:]
    assert (training.base, training.variant, training.out) == ("", variant, "model")
    assert training.demos == trained[1].demos
    PretrainConfig(**training.pretrain)
    settings, usual = composed_model(name), composed_model("nano-tabletop")
    assert settings == {**usual, "name": name, "model_dir": f"runs/{name}/model"}
    started: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(nano.subprocess, "run", run)
    assert nano.main(["--policy", name]) == 0
    assert f"out={settings['model_dir']}" in started[-1]


def composed_model(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "model" / f"{name}.yaml"))


def test_the_libero_policy_reads_every_task_of_its_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[libero_demos.DemoConfig, Path]] = []
    trained: list[pretraining.NanoConfig] = []
    monkeypatch.setattr(
        libero_demos, "generate", lambda config, out, workers: recorded.append((config, out))
    )
    monkeypatch.setattr(pretraining, "build", trained.append)
    for module, words in nano.libero_steps(Path("work"), Path("model")):
        assert not {GENERATE: recording.main, PRETRAIN: pretraining.main}[module](words)
    ((demos_config, demos_out),), (training,) = recorded, trained
    assert (training.demos, training.out) == ([str(demos_out)], "model")
    assert (demos_config.suite, demos_config.chunk) == (training.unnorm_key, training.chunk_size)
    suite = compose_run(["suite=libero_spatial", "model=nano-libero"]).tree["suite"]
    assert training.readable == [task["instruction"] for task in suite["tasks"]]
    assert suite["image_size"] == demos_config.image_size
    assert suite["renderer"] == demos_config.renderer
    known = [suite["tasks"][index]["slug"] for index in demos_config.tasks]
    assert {*suite["train_tasks"], *suite["held_out_tasks"]} <= set(known)
    PretrainConfig(**training.pretrain)


@pytest.mark.parametrize(
    ("failing", "status", "reported"), [(GENERATE, 1, 1), (PRETRAIN, -9, 137), ("", 0, 0)]
)
def test_the_first_failure_ends_it(
    failing: str, status: int, reported: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        started.append(next(name for name in (GENERATE, PRETRAIN) if name in command))
        return subprocess.CompletedProcess(command, status if started[-1] == failing else 0)

    monkeypatch.setattr(nano.subprocess, "run", run)
    assert nano.main([]) == reported
    whole = [GENERATE, PRETRAIN] * 2
    assert started == (whole[: whole.index(failing) + 1] if failing else whole)
