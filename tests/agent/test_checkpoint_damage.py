"""Damaged model folders: each is refused, naming the file or field and the way out."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_fixtures import narrow_config, random_model
from model_fixtures import INSTRUCTIONS
from safetensors.torch import load_file, save_file

from agent.model.checkpoint import load_model, save_model
from agent.model.errors import ModelFolderError
from agent.model.folder import INDEX_FILE, ModelFolder, read_component, read_shapes
from agent.model.nano import build_nano_tokenizer

HEAD, PROPRIO, TOWERS = (
    f"{name}--5_checkpoint.pt" for name in ("action_head", "proprio_projector", "vision_backbone")
)
SHARD_BYTES = 8_000


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sharded oft-l1 folder with every component and a tokenizer."""
    folder = tmp_path_factory.mktemp("whole")
    config = narrow_config((2, 2, 1), variant="oft-l1", use_proprio=True, use_film=True)
    save_model(random_model(config), folder, step=5, shard_bytes=SHARD_BYTES)
    build_nano_tokenizer(INSTRUCTIONS).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(whole_folder: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(whole_folder, tmp_path / "model")


class Harmless:
    """An object that is no tensor."""


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def shard_with(folder: Path, key: str) -> Path:
    return next(file for file in shards_of(folder) if key in load_file(file))


def edit_shard(folder: Path, key: str, change: Callable[[dict], None]) -> None:
    file = shard_with(folder, key)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_component(file: Path, change: Callable[[dict], dict]) -> None:
    torch.save(change(torch.load(file, weights_only=True)), file)


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def truncate(file: Path, part: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])


def flip_header(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[20] ^= 0xFF
    file.write_bytes(content)


def repeat_key(folder: Path) -> None:
    first, second = shards_of(folder)[:2]
    key, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), key: tensor}, second)


def with_lora(**factors: torch.Tensor) -> Callable[[dict], dict]:
    module = "vision_backbone.featurizer.blocks.0.block.attn.qkv"
    added = {f"{module}.lora_{name}.default.weight": t for name, t in factors.items()}
    return lambda stored: {**stored, **added}


FC1 = "projector.fc1.weight"
WEIGHTS = {
    "truncated shard": (
        lambda f: truncate(shards_of(f)[1], 0.6),
        r"model-00002-of-.*damaged or incomplete.*fetch it again",
    ),
    "truncated inside the header": (
        lambda f: truncate(shards_of(f)[0], 0.02),
        r"model-00001-of-.*damaged or incomplete.*fetch it again",
    ),
    "empty shard": (
        lambda f: shards_of(f)[0].write_bytes(b""),
        r"model-00001-of-.*damaged or incomplete.*fetch it again",
    ),
    "flipped header": (
        lambda f: flip_header(shards_of(f)[1]),
        r"model-00002-of-.*damaged or incomplete.*fetch it again",
    ),
    "missing shard": (
        lambda f: shards_of(f)[1].unlink(),
        r"index\.json names 'model-00002-of-.*not there.*fetch it",
    ),
    "a shard outside the folder": (
        lambda f: edit_json(
            f / INDEX_FILE, lambda v: v["weight_map"].update({FC1: "../x.safetensors"})
        ),
        r"index\.json names '\.\./x",
    ),
    "key in two shards": (repeat_key, r"model-00002-of-.*repeats keys.*fetch the shards again"),
    "index of another revision": (
        lambda f: edit_json(f / INDEX_FILE, lambda v: v["weight_map"].pop(FC1)),
        r"index\.json and its shards differ in \['projector\.fc1\.weight'\].*one revision",
    ),
    "index without a map": (
        lambda f: (f / INDEX_FILE).write_text("{}"),
        r"index\.json lacks weight_map; fetch it again",
    ),
    "index that is no JSON": (
        lambda f: (f / INDEX_FILE).write_text("version https://git-lfs"),
        r"index\.json is not JSON",
    ),
    "NaN weight": (
        lambda f: edit_shard(f, FC1, lambda t: t[FC1][1].fill_(float("nan"))),
        r"projector\.fc1\.weight holds NaN.*fetch it again",
    ),
    "infinite weight": (
        lambda f: edit_shard(f, FC1, lambda t: t[FC1][1].fill_(float("-inf"))),
        r"projector\.fc1\.weight holds NaN or infinity",
    ),
    "wrong shape": (
        lambda f: edit_shard(f, FC1, lambda t: t.update({FC1: torch.zeros(3, 4)})),
        r"1 mis-shaped \['projector\.fc1\.weight: expected \(80, 20\), got \(3, 4\)'\].*revision",
    ),
    "8-bit weights": (
        lambda f: edit_shard(f, FC1, lambda t: t.update({FC1: t[FC1].to(torch.int8)})),
        r"projector\.fc1\.weight is stored as torch\.int8.*use the published one",
    ),
    "float8 weights": (
        lambda f: edit_shard(f, FC1, lambda t: t.update({FC1: t[FC1].to(torch.float8_e4m3fn)})),
        r"projector\.fc1\.weight is stored as torch\.float8.*use the published one",
    ),
}
COMPONENTS = {
    "pickled object": (
        lambda f: torch.save({"fc1.weight": Harmless()}, f / PROPRIO),
        r"proprio_projector--5.*damaged or holds more than tensors.*plain state dict",
    ),
    "no archive": (
        lambda f: (f / HEAD).write_bytes(b"not found"),
        r"action_head--5.*not loaded.*Fetch it again",
    ),
    "truncated archive": (
        lambda f: truncate(f / HEAD, 0.5),
        r"action_head--5.*not loaded.*Fetch it again",
    ),
    "empty file": (lambda f: (f / HEAD).write_bytes(b""), r"action_head--5.*not loaded"),
    "list": (
        lambda f: torch.save([torch.zeros(2)], f / HEAD),
        r"action_head--5.*must hold a dictionary of dense tensors: save",
    ),
    "number among the tensors": (
        lambda f: edit_component(f / HEAD, lambda t: {**t, "step": 5}),
        r"action_head--5.*must hold a dictionary of dense tensors",
    ),
    "sparse tensor": (
        lambda f: edit_component(f / HEAD, lambda t: {**t, "x": torch.zeros(2, 2).to_sparse()}),
        r"action_head--5.*must hold a dictionary of dense tensors",
    ),
    "NaN in a component": (
        lambda f: edit_component(
            f / HEAD, lambda t: {**t, "module.model.fc2.bias": torch.full((7,), float("nan"))}
        ),
        r"action_head\.model\.fc2\.bias holds NaN",
    ),
    "component of another width": (
        lambda f: edit_component(f / HEAD, lambda t: {**t, "module.model.fc2.bias": torch.ones(9)}),
        r"action_head\.model\.fc2\.bias: expected \(7,\), got \(9,\)",
    ),
    "component with another key": (
        lambda f: edit_component(f / HEAD, lambda t: {**t, "time_encoder.x": torch.ones(9)}),
        r"1 unexpected \['action_head\.time_encoder\.x'\]",
    ),
    "LoRA factor alone": (
        lambda f: edit_component(f / TOWERS, with_lora(A=torch.zeros(2, 8))),
        r"featurizer\.blocks\.0\.attn\.qkv needs lora_A, lora_B and base_layer, got \['A'\]",
    ),
    "LoRA factors that do not fit": (
        lambda f: edit_component(f / TOWERS, with_lora(A=torch.zeros(2, 8), B=torch.zeros(24, 3))),
        r"LoRA of .*blocks\.0\.attn\.qkv: expected .* got \(2, 8\), \(24, 3\)",
    ),
}


@pytest.mark.parametrize(("damage", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights(damage: Callable, message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ModelFolderError, match=message):
        load_model(folder)


@pytest.mark.parametrize(("damage", "message"), COMPONENTS.values(), ids=COMPONENTS)
def test_damaged_components(damage: Callable, message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ModelFolderError, match=message):
        load_model(folder)


def read_weights(folder: Path) -> None:
    read_shapes(ModelFolder.open(folder))


@pytest.mark.parametrize("name", [PROPRIO, "model-00001-of-*.safetensors"])
def test_no_damaged_byte_escapes_as_another_error(name: str, folder: Path) -> None:
    (file,) = folder.glob(name)
    rng = random.Random(0)
    content, refused = file.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 3])):
            damaged[rng.randrange(min(len(content), 2000))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        # A damaged weight is a number like any other: only the structure can be told.
        with contextlib.suppress(ModelFolderError):
            refused += 1
            read_component(file) if name == PROPRIO else read_weights(folder)
            refused -= 1
    assert refused > 100
