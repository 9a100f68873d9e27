"""From an L1 head to action tokens: agreement improves, a killed conversion resumes exactly."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_fixtures import INSTRUCTIONS, A, K, micro_config, write_micro_tokenizer

from agent.model.actions import decode_tokens
from agent.model.checkpoint import save_model
from agent.model.errors import ModelFolderError
from agent.model.nano import init_nano
from agent.model.policy_model import load_policy_model
from agent.wire.errors import ConfigError
from learner import conversion
from learner.conversion import Conversion, TokenStudent, convert
from learner.demonstrations import DemonstrationError, Demonstrations, load_demonstrations
from learner.to_discrete import ConversionSettings, main

FRAMES = 60


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    """Random frames; the actions on them are never looked at."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "demos"
    folder.mkdir()
    slugs = [{"slug": f"task{i}", "instruction": text} for i, text in enumerate(INSTRUCTIONS)]
    (folder / "meta.json").write_text(json.dumps({"tasks": slugs}))
    np.savez(
        folder / "shard-00000.npz",
        agentview=rng.integers(0, 256, (FRAMES, 16, 16, 3), dtype=np.uint8),
        wrist=rng.integers(0, 256, (FRAMES, 16, 16, 3), dtype=np.uint8),
        proprio=rng.uniform(-1, 1, (FRAMES, 8)).astype(np.float32),
        task=rng.integers(0, 2, FRAMES).astype(np.int16),
        actions=np.zeros((FRAMES, K, A), dtype=np.float32),
        state=np.zeros((FRAMES, 5), dtype=np.float32),
        target=np.zeros((FRAMES, 6), dtype=np.float32),
    )
    return folder


def write_base(folder: Path, variant: str = "oft-l1") -> Path:
    folder.mkdir()
    config = dataclasses.replace(micro_config(write_micro_tokenizer(folder)), variant=variant)
    network = init_nano(config, seed=0)
    if network.action_head is not None:
        with torch.no_grad():  # each dimension acts around a value of its own
            network.action_head.model.fc2.weight.mul_(0.3)
            network.action_head.model.fc2.bias.copy_(torch.linspace(-0.7, 0.6, A))
    save_model(network, folder, step=7)
    return folder


def settings_for(folder: Path, **changes: object) -> ConversionSettings:
    values: dict[str, object] = {
        "demos": [str(folder)], "steps": 40, "batch_size": 8, "learning_rate": 3e-2, "rank": 8,
        "alpha": 8.0, "warmup_steps": 3, "label_sigma_bins": 0.5, "checkpoint_every": 4,
    }  # fmt: skip
    return ConversionSettings(**{**values, **changes})


def new_conversion(base: Path, settings: ConversionSettings) -> Conversion:
    model = load_policy_model(str(base), {}, ["agentview", "wrist"], "micro")
    student = TokenStudent(model, settings.rank, settings.alpha, settings.seed)
    return Conversion(student, load_demonstrations([Path(settings.demos[0])]), settings)


def greedy_difference(base: Path, out: Path, frames: Demonstrations) -> float:
    """Mean |difference| of the two folders' greedy motion, each loaded as a server would."""
    chunks = []
    for folder in (base, out):
        model = load_policy_model(str(folder), {}, ["agentview", "wrist"], "micro")
        ids = [model.prompts.encode(frames.instructions[0])] * len(frames)
        images = np.stack([frames.agentview, frames.wrist], axis=1)
        with torch.no_grad():
            output = model.network(
                torch.tensor(ids), model.images.pixels(images), model.proprio_input(frames.proprio)
            )
        if output.means_BKA is not None:
            chunks.append(output.means_BKA.clamp(-1, 1).numpy())
        else:
            chunks.append(decode_tokens(output.logits_BKAV.argmax(-1).numpy(), 16))
    return float(np.abs(chunks[0] - chunks[1])[..., :-1].mean())


@pytest.mark.slow
def test_the_token_policy_learns_what_the_head_says(demos: Path, tmp_path: Path, capsys) -> None:
    base, out = write_base(tmp_path / "base"), tmp_path / "out"
    before, after = convert(base, out, settings_for(demos))
    assert after.difference < 0.75 * before.difference
    assert after.gripper >= before.gripper
    assert before.frames == FRAMES // 10
    assert capsys.readouterr().out.count("mean |difference|") == 2
    assert {file.name for file in out.iterdir()} == {
        file.name for file in base.iterdir() if not file.name.startswith("action_head")
    }
    converted = load_policy_model(str(out), {}, ["agentview", "wrist"], "micro")
    assert converted.config.variant == "oft-discrete"
    assert converted.proprio is not None
    frames = load_demonstrations([demos])
    found = greedy_difference(base, out, frames)
    # Stored in bfloat16, on frames of both kinds and one instruction: near, not equal.
    assert found < 0.75 * before.difference
    with pytest.raises(ModelFolderError, match="exists"):
        convert(base, out, settings_for(demos))


def test_the_adapter_alone_changes(demos: Path, tmp_path: Path) -> None:
    run = new_conversion(write_base(tmp_path / "base"), settings_for(demos, steps=3))
    rows = np.arange(4)
    taught = run.student.teach(run.demos, rows)
    run.run(tmp_path / "checkpoint.pt", lambda step, loss: None)
    assert np.array_equal(run.student.teach(run.demos, rows), taught)
    assert not np.isin(run.held_out, run.training).any()
    assert len(run.held_out) + len(run.training) == FRAMES


@pytest.mark.slow
def test_a_killed_conversion_resumes_to_the_same_weights(demos: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, loss: float) -> None:
        if step == 6:
            raise Killed

    base, settings = write_base(tmp_path / "base"), settings_for(demos, steps=8)
    whole = new_conversion(base, settings)
    whole.run(tmp_path / "whole.pt", lambda step, loss: None)
    with pytest.raises(Killed):
        new_conversion(base, settings).run(tmp_path / "killed.pt", kill)
    resumed, steps = new_conversion(base, settings), []
    resumed.run(tmp_path / "killed.pt", lambda step, loss: steps.append(step))
    assert steps == [5, 6, 7, 8]
    expected = whole.student.adapter_tensors()
    for name, tensor in resumed.student.adapter_tensors().items():
        assert torch.equal(tensor, expected[name]), name
    other = new_conversion(base, settings_for(demos, steps=8, seed=1))
    with pytest.raises(ModelFolderError, match="other settings"):
        other.run(tmp_path / "killed.pt", lambda step, loss: None)


def test_what_cannot_be_converted_is_refused(demos: Path, tmp_path: Path) -> None:
    tokens = write_base(tmp_path / "tokens", "oft-discrete")
    with pytest.raises(ModelFolderError, match="only a checkpoint with an L1 head"):
        convert(tokens, tmp_path / "out", settings_for(demos))
    with pytest.raises(ModelFolderError, match="nowhere"):
        convert(tmp_path / "nowhere", tmp_path / "out", settings_for(demos))
    with pytest.raises(DemonstrationError, match="too few"):
        conversion._split(19)
    for changes, message in (
        ({"demos": []}, "demos"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"dtype": "int8"}, "dtype"),
        ({"cameras": ["front"]}, "cameras"),
        ({"warmup_steps": 41}, "warmup_steps"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings_for(demos, **changes)


def test_the_command(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = write_base(tmp_path / "base"), tmp_path / "out"
    short = [f"demos=[{demos}]", "steps=1", "batch_size=2", "warmup_steps=0", "unnorm_key=micro"]
    assert main([str(base), str(out), *short]) == 0
    assert (tmp_path / "out.work" / "agreement.json").exists()
    assert "held-out frames" in capsys.readouterr().out
    assert main([str(base), str(out), *short]) == 1
    assert "exists" in capsys.readouterr().err
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    assert main([str(base), str(tmp_path / "lost"), *short]) == 1
    assert "exists" in capsys.readouterr().err
    (tmp_path / "third.work").mkdir()
    (tmp_path / "third.work" / "agreement.json").write_text("a person's")
    assert main([str(base), str(tmp_path / "third"), *short]) == 1
    assert "work: " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "third.work").iterdir()] == ["agreement.json"]
    for words in (["stepz=1"], ["steps=many"], [], ["demos=[a]", "steps=0"]):
        assert main([str(base), str(tmp_path / "other"), *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("perennial model to-discrete: ")
        assert error.count("\n") == 1
