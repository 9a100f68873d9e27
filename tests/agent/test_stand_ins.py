"""A pointer, a broken link or a web page in place of a file is called what it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from model_fixtures import tiny_model

from agent.adapters import AdapterStore
from agent.episode import read_episode
from agent.model.lora import attach_lora, read_adapter, save_adapter
from agent.model.policy_model import NANO_FOLDER, load_policy_model
from agent.process.stand_ins import describe_stand_in
from learner.demonstrations import load_demonstrations
from learner.libero_hdf5 import open_file

LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
KINDS = {
    "LFS": (lambda file: file.write_text(LFS), "is a Git LFS pointer.*git lfs pull"),
    "annex": (
        lambda file: file.write_text("/annex/objects/SHA256E-s12345--4d4d.bin\n"),
        "is a git-annex pointer.*git annex get",
    ),
    "locked annex": (
        lambda file: file.symlink_to("../.git/annex/objects/Xx/SHA256E-s12345--4d4d.bin"),
        "is a git-annex pointer.*git annex get",
    ),
    "broken link": (
        lambda file: file.symlink_to("../../blobs/4d4d"),
        r"is a link to '\.\./\.\./blobs/4d4d', which is not there",
    ),
    "web page": (
        lambda file: file.write_text("\n<!DOCTYPE html>\n<html><body>Log in</body></html>"),
        "is a web page",
    ),
}


def load(folder: Path) -> object:
    return load_policy_model(str(folder), {}, ("agentview", "wrist"), "tabletop")


def open_demonstrations(path: Path) -> None:
    with open_file(path):
        pass


@pytest.mark.parametrize(("replace", "message"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "dataset_statistics.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "model.safetensors",
        "proprio_projector--1000_checkpoint.pt",
    ],
)
def test_of_a_model_folder(tmp_path: Path, name: str, replace: Callable, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in NANO_FOLDER.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / name).unlink(missing_ok=True)
    replace(folder / name)
    with pytest.raises(Exception, match=message) as caught:
        load(folder)
    assert str(folder / name) in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(("replace", "message"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_of_an_adapter(
    tmp_path_factory: pytest.TempPathFactory, name: str, replace: Callable, message: str
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(attach_lora(tiny_model(), 2, 4.0), folder)
    (folder / name).unlink()
    replace(folder / name)
    with pytest.raises(Exception, match=f"{name} {message}"):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["manifest.json", "adapter_model.safetensors"])
def test_of_a_published_version(tmp_path: Path, name: str) -> None:
    store = AdapterStore(tmp_path)
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(999)}
    origin = {"parent": "base", "task": "a", "base_sha256": "0" * 64, "method": "grpo"}
    version = store.publish(1, files, **origin, metrics={}).version
    (tmp_path / version / name).write_text(LFS)
    with pytest.raises(Exception, match=f"{version}.*{name} is a Git LFS pointer"):
        store.verify(version)


@pytest.mark.parametrize(("replace", "message"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.mcap", read_episode),
        ("a.hdf5", open_demonstrations),
        ("meta.json", lambda path: load_demonstrations([path.parent])),
    ],
)
def test_of_data(
    tmp_path: Path, name: str, read: Callable, replace: Callable, message: str
) -> None:
    replace(tmp_path / name)
    with pytest.raises(Exception, match=f"{name}:? {message}"):
        read(tmp_path / name)


def test_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"tasks": [{"slug": "a", "instruction": "do a"}]}')
    (tmp_path / "shard-00000.npz").write_text(LFS)
    with pytest.raises(Exception, match=r"shard-00000\.npz is a Git LFS pointer"):
        load_demonstrations([tmp_path])


def test_whole_files_are_none(tmp_path: Path) -> None:
    for file in NANO_FOLDER.iterdir():
        assert describe_stand_in(file) == ""
    assert describe_stand_in(tmp_path) == describe_stand_in(tmp_path / "nothing") == ""
    link = tmp_path / "link"
    link.symlink_to(shutil.copy(NANO_FOLDER / "config.json", tmp_path / "blob"))
    assert describe_stand_in(link) == ""
