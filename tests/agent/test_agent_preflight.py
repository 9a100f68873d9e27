"""What a policy server is refused for before anything is loaded."""

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from adapter_fixtures import shallow_model
from model_fixtures import INSTRUCTIONS

from agent.__main__ import main
from agent.durable import locked
from agent.model.checkpoint import save_model
from agent.model.nano import build_nano_tokenizer
from agent.preflight import Contract


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight") / "model"
    save_model(shallow_model(), folder, step=0)
    build_nano_tokenizer(INSTRUCTIONS).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def settings(tmp_path: Path, model: Path) -> list[str]:
    """Of a server that can work."""
    return [
        f"state_dir={tmp_path}/agent", f"adapters_dir={tmp_path}/adapters",
        f"robots_endpoint=ipc://{tmp_path}/r", f"operator_endpoint=ipc://{tmp_path}/o",
        f"policy.model_dir={model}", f"tasks={{own: {{instruction: {INSTRUCTIONS[0]}, suite: s}}}}",
    ]  # fmt: skip


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--preflight", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def test_settings_that_can_work_print_the_contract_and_leave_nothing(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--preflight", *settings]) == 0
    contract = json.loads(capsys.readouterr().out)
    assert contract.keys() == {field.name for field in fields(Contract)}
    assert contract["tasks"] == {"s": ["own"]}
    assert set(contract["images"]) == {"agentview", "wrist"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("tasks={own: {instruction: juggle}}", "tasks.own: .*words that the tokenizer"),
        ("policy.model_dir=/nowhere", "policy.model_dir: .*does not exist"),
        ("policy.unnorm_key=another", "policy.model_dir: unnorm_key"),
        ("policy.cameras=[agentview]", "policy.model_dir: cameras: the model sees 2"),
        ("policy.architecture={chunk_size: 3, hidden: 1}", "policy.model_dir: "),
        ("policy.device=nowhere", "policy.device: nowhere is not there"),
        ("http_host=0.0.0.0", "http_host=0.0.0.0: "),
        ("robots_endpoint=tcp://0.0.0.0:5555", "without encryption"),
        ("operator_endpoint=ipc:///nowhere/o", "no folder /nowhere"),
        ("keys_dir=/nowhere", "/nowhere"),
        ("state_dir=/proc/version/agent", "state_dir: .*a file is where a folder is needed"),
        ("adapters_dir=/proc/version/agent", "adapters_dir: "),
    ],
)
def test_what_cannot_work_is_named(
    setting: str, reason: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    line = refusal([*settings, setting], capsys)
    assert re.search(reason, line), line


def test_weights_that_do_not_fit_are_found_without_reading_them(
    settings: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "damaged")
    (weights,) = (tmp_path / "damaged").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    line = refusal([*settings, f"policy.model_dir={tmp_path}/damaged"], capsys)
    assert "damaged or incomplete" in line


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.mark.parametrize(
    "setting", ["http_port={}", "robots_endpoint=tcp://127.0.0.1:{}"], ids=["http", "robots"]
)
def test_a_port_that_is_in_use_is_named(
    setting: str, taken_port: int, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal([*settings, setting.format(taken_port)], capsys)
    assert str(taken_port) in line
    assert "in use" in line


def test_a_state_folder_of_a_running_process_is_named(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "agent"):
        assert "is in use by process" in refusal(settings, capsys)
