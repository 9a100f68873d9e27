"""A model folder whose config, tokenizer or statistics cannot work stops the server."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_fixtures import narrow_config, random_model
from model_fixtures import INSTRUCTIONS

from agent.config import PolicyConfig
from agent.model import folder as folder_module
from agent.model.checkpoint import save_model
from agent.model.errors import ModelFolderError
from agent.model.folder import open_shard
from agent.model.nano import build_nano_tokenizer
from agent.vla_loading import load_vla_policy
from agent.vla_policy import VlaPolicy
from agent.wire.errors import ConfigError


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small oft-l1 folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("whole")
    config = narrow_config((2, 2, 1), variant="oft-l1", use_proprio=True)
    save_model(random_model(config), folder, step=5)
    build_nano_tokenizer(INSTRUCTIONS).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(whole_folder: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(whole_folder, tmp_path / "model")


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def set_stats(folder: Path, modality: str, name: str, value: object) -> None:
    def change(values: dict) -> None:
        values["libero"][modality][name] = value

    edit_json(folder / "dataset_statistics.json", change)


AROUND = {
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"tokenizer\.json does not exist.*needs a tokenizer",
    ),
    "truncated tokenizer": (
        lambda f: (f / "tokenizer.json").write_bytes((f / "tokenizer.json").read_bytes()[:999]),
        r"tokenizer\.json is no tokenizer.*copy it from the published",
    ),
    "tokenizer of another kind": (
        lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"}'),
        r"tokenizer\.json is no tokenizer.*copy it from the published",
    ),
    "tokenizer of a larger model": (
        lambda f: build_nano_tokenizer(INSTRUCTIONS, 512).save(str(f / "tokenizer.json")),
        r"tokenizer\.json has ids up to \d+, text_config\.vocab_size is 384",
    ),
    "preprocessor of another model": (
        lambda f: (f / "preprocessor_config.json").write_text(
            json.dumps({"means": [[0.5] * 3] * 2, "stds": [[0.5] * 3] * 2})
        ),
        r"preprocessor_config\.json: image_resize_strategy: expected resize-naive.*remove it",
    ),
    "statistics of another width": (
        lambda f: (
            set_stats(f, "proprio", "q01", [0.0] * 9) or set_stats(f, "proprio", "q99", [1.0] * 9)
        ),
        r"norm_stats of 'libero': proprio has 9 dimensions, the config 8; state proprio_dim",
    ),
    "statistics of two widths": (
        lambda f: set_stats(f, "action", "q01", [0.0] * 6),
        r"norm_stats of 'libero': action.*one length",
    ),
    "statistics with NaN": (
        lambda f: set_stats(f, "action", "q01", [float("nan")] * 7),
        r"norm_stats of 'libero': action.*finite.*dataset_statistics\.json",
    ),
    "statistics in words": (
        lambda f: set_stats(f, "action", "q99", ["high"] * 7),
        r"norm_stats of 'libero': action.*fetch dataset_statistics\.json",
    ),
    "statistics as a list": (
        lambda f: edit_json(f / "dataset_statistics.json", lambda v: v.update(libero=[1])),
        r"norm_stats of 'libero': action.*fetch dataset_statistics\.json",
    ),
    "no such statistics": (
        lambda f: edit_json(f / "dataset_statistics.json", lambda v: v["libero"].pop("proprio")),
        r"norm_stats\['libero'\] lacks 'proprio'",
    ),
}
CONFIGS = {
    "towers not divisible": ("vision_towers", [{"kind": "dinov2", "dim": 7}], "vision_towers"),
    "image size as a number": ("image_sizes", 224, r"config\.json"),
    "text config of words": ("text_config", "llama", r"config\.json"),
    "head count": ("text_config.num_attention_heads", 3, r"config\.json"),
    "vocabulary in words": ("text_config.vocab_size", "many", r"config\.json"),
}


def load_served(folder: Path, unnorm_key: str = "") -> VlaPolicy:
    settings = {"micro_batch": 1, "adapter_slots": 3, "adapter_rank": 4}
    return load_vla_policy(PolicyConfig(model_dir=str(folder), unnorm_key=unnorm_key, **settings))


@pytest.mark.parametrize(("damage", "message"), AROUND.values(), ids=AROUND)
def test_damage_around_the_weights_stops_the_server_with_its_reason(
    damage: Callable, message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(ConfigError, match=f"policy\\.model_dir: .*{message}"):
        load_served(folder)


@pytest.mark.parametrize(("field", "value", "message"), CONFIGS.values(), ids=CONFIGS)
def test_impossible_config_values(field: str, value: object, message: str, folder: Path) -> None:
    def change(values: dict) -> None:
        owner, _, name = field.rpartition(".")
        (values[owner] if owner else values)[name] = value

    edit_json(folder / "config.json", change)
    with pytest.raises(ConfigError, match=message):
        load_served(folder)


def test_an_unknown_unnorm_key_lists_those_there_are(whole_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unnorm_key 'bridge' is not in \['libero'\]"):
        load_served(whole_folder, unnorm_key="bridge")
    load_served(whole_folder)


def test_a_shard_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library says of one that may not be read that there is none; root may read all."""
    path = tmp_path / "model.safetensors"
    with (
        pytest.raises(ModelFolderError, match=r"model\.safetensors is not there"),
        open_shard(path),
    ):
        pass
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr(folder_module, "safe_open", refuse)
    with pytest.raises(ModelFolderError, match="cannot be read by this user"), open_shard(path):
        pass
