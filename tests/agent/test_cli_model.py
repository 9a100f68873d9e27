"""`perennial model inspect` and `verify`: what they say, to people and machines, and refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapter_fixtures import train_fake_adapter, variant_model
from model_fixtures import INSTRUCTIONS, tiny_config
from safetensors.torch import load_file, save_file

from agent.cli_model import main
from agent.model.checkpoint import save_model
from agent.model.inspection import FIELDS, inspect_folder
from agent.model.nano import build_nano_tokenizer

NANO = Path(__file__).parents[2] / "agent/assets/nano"
GOLDEN = Path(__file__).parents[1] / "golden/openvla_oft"
SAY = ["--instruction", INSTRUCTIONS[0]]
EXTENSIONS = ["num_images", "use_proprio", "proprio_dim", "use_film", "chunk_size",
              "keep_stop_token", "greedy_range", "laplace_scale", "norm_bounds", "gripper",
              "image_pipeline", "center_crop", "rotate_180", "empty_token"]  # fmt: skip


def write_folder(folder: Path, variant: str, *, published: bool = False) -> Path:
    """A tiny model folder; `published` drops what only our own config.json states."""
    save_model(variant_model(variant), folder, step=3, shard_bytes=400_000)
    build_nano_tokenizer(INSTRUCTIONS).save(str(folder / "tokenizer.json"))
    if published:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        kept = {k: v for k, v in values.items() if k not in {"variant", *EXTENSIONS}}
        path.write_text(json.dumps({**kept, "vision_towers": values["vision_towers"]}))
    return folder


def inspect_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["inspect", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_nano_model_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(NANO)]) == 0
    text = capsys.readouterr().out
    parameters = sum(t.numel() for t in load_file(NANO / "model.safetensors").values())
    proprio = torch.load(next(NANO.glob("proprio*.pt")), weights_only=True)
    total = parameters + sum(tensor.numel() for tensor in proprio.values())
    for fact in (f"{total:,}", "oft-discrete", "BF16", "2 a step, 64 px", "chunks of 5",
                 "8 dimensions", "tabletop", "tokenizer.json", "published defaults"):  # fmt: skip
        assert fact in text
    assert "in the way" not in text


def test_what_published_files_leave_open_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "base", "openvla", published=True)
    found = inspect_json(capsys, str(folder))
    assert found["variants"] == ["openvla", "oft-discrete"]
    assert found["num_images"] is found["chunk_size"] is None
    assert any("state architecture.variant" in problem for problem in found["problems"])
    assert found["shards"] > 1
    assert found["parameters"]["dinov2"] > 0

    stated = ["--set", "variant=openvla", "--set", "greedy_range=vocabulary"]
    found = inspect_json(capsys, str(folder), *stated)
    assert found["problems"] == []
    assert (found["variants"], found["num_images"], found["chunk_size"]) == (["openvla"], 1, 1)
    assert set(found["assumed"]) == {*FIELDS["openvla"]} - {"greedy_range"}
    assert main(["verify", str(folder), *stated, *SAY]) == 0
    assert "action 0" in capsys.readouterr().out


def test_an_l1_folder_shows_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "base", "oft-l1", published=True)
    train_fake_adapter(folder / "lora_adapter", 4, 2.0, seed=1, model=variant_model("oft-l1"))
    (folder / "modeling_prismatic.py").write_text("raise SystemExit")
    stated = ["--set", "chunk_size=5", "--set", "num_images=2"]
    found = inspect_json(capsys, str(folder), *stated)
    assert (found["variants"], found["proprio_dim"]) == (["oft-l1"], 8)
    assert set(found["components"]) == {"action_head", "proprio_projector"}
    assert found["adapter"] == "rank 4, alpha 2"
    assert [line.partition(":")[0] for line in found["ignored"]] == [
        "lora_adapter/",
        "modeling_prismatic.py",
    ]
    assert found["problems"] == []
    assert main(["verify", str(folder), *stated, *SAY, "--dtype", "bfloat16"]) == 0
    stages = capsys.readouterr().out.splitlines()
    first_words = [line.split()[0] for line in stages]
    assert first_words[:6] == ["files", "config", "keys", "weights", "processing", "forward"]
    assert first_words[6:] == ["action"] * 5


def test_inspecting_reads_no_weights(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", "oft-l1")
    expected = inspect_folder(folder, {})
    for file in folder.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        header = 8 + int.from_bytes(data[:8], "little")
        data[header:] = b"\xff" * (len(data) - header)  # NaN everywhere
        file.write_bytes(data)
    assert inspect_folder(folder, {}) == expected
    assert main(["verify", str(folder), *SAY]) == 1


def test_problems_are_listed_and_verify_fails_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "base", "oft-discrete")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    (folder / "dataset_statistics.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_stats": {}}))
    shard = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    lost = sorted(tensors)[0]
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, shard)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][lost]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    text = " ".join(inspect_json(capsys, str(folder))["problems"])
    for reason in (f"1 missing ['{lost}']", "tokenizer.model alone", "robot units"):
        assert reason in text
    assert main(["inspect", str(folder)]) == 0
    assert "in the way:" in capsys.readouterr().out
    assert main(["verify", str(folder)]) == 1
    error = capsys.readouterr().err
    assert lost in error
    assert error.count("\n") == 1


def test_the_golden_folder_needs_its_geometry(capsys: pytest.CaptureFixture[str]) -> None:
    (problem, *_) = inspect_json(capsys, str(GOLDEN))["problems"]
    assert "state the geometry" in problem
    towers = (
        "vision_towers=[{kind: dinov2, dim: 32, depth: 3, heads: 2, mlp_dim: 128, patch_size: 14, "
        "registers: 4}, {kind: siglip, dim: 48, depth: 4, heads: 3, mlp_dim: 179, patch_size: 14}]"
    )
    found = inspect_json(capsys, str(GOLDEN), "--set", towers)
    assert found["has_preprocessor"]
    assert found["unnorm_keys"] == ["libero_spatial_no_noops"]
    assert [problem.partition(" ")[0] for problem in found["problems"]] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["inspect", "nowhere"], 2, "no folder"),
        (["inspect", ".", "--set", "variant"], 2, "settings look like key=value"),
        (["inspect", ".", "--set", "variant=[1"], 2, "--set variant: cannot read"),
        (["inspect", "."], 1, "config.json"),
        (["verify", "base", "--set", "variants=openvla"], 1, "unknown model override"),
        (["verify", "base", "--set", "chunk_size=many"], 1, "chunk_size"),
        (["verify", "base", "--set", "num_images=3.5"], 1, "num_images"),
        (["verify", "base", "--instruction", "fold the shirt"], 1, "--instruction"),
        (["verify", "base", "--unnorm-key", "bridge"], 1, "unnorm_key"),
        (["merge", "base", "nowhere", "out"], 1, "no folder"),
    ],
)
def test_refusals_are_one_line(
    words: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "base" in words:
        shutil.copytree(NANO, tmp_path / "base")
    assert main(words) == status
    error = capsys.readouterr().err
    assert error.startswith("perennial model: ")
    assert message in error
    assert error.count("\n") == 1


def test_one_unnorm_key_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "base", "oft-discrete")
    own = tiny_config().norm_stats["nano"]
    both = {"nano": own, "arm14": {"action": {"q01": [0.0] * 14, "q99": [1.0] * 14}}}
    (folder / "dataset_statistics.json").write_text(json.dumps(both))
    found = inspect_json(capsys, str(folder))
    assert (found["unnorm_keys"], found["problems"]) == (["arm14", "nano"], [])
    assert main(["verify", str(folder), *SAY]) == 1
    assert "name one" in capsys.readouterr().err
    assert main(["verify", str(folder), *SAY, "--unnorm-key", "nano"]) == 0
