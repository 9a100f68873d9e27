import dataclasses

import pytest
import torch

from learner.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointFolder,
    Place,
    load_optimizer_tensors,
)


def checkpoint(update_id=1):
    return Checkpoint(
        Place(update_id, 0, update_id, 8, 64),
        {"a": torch.arange(6.0).reshape(2, 3)},
        {"a/exp_avg": torch.ones(2, 3), "a/step": torch.tensor(4.0)},
        torch.get_rng_state(),
        {"seed": 3, "suite": {"name": "toy"}},
    )


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "checkpoints")


def test_what_is_saved_is_loaded(folder):
    saved = checkpoint()
    loaded = folder.load(*folder.save(saved))
    assert (loaded.place, loaded.settings) == (saved.place, saved.settings)
    assert torch.equal(loaded.adapter["a"], saved.adapter["a"])
    assert loaded.optimizer.keys() == saved.optimizer.keys()
    assert torch.equal(loaded.torch_rng, saved.torch_rng)


def test_a_critic_is_kept_and_its_loss_is_noticed(folder):
    saved = dataclasses.replace(checkpoint(), critic={"layers.0.weight": torch.ones(2, 2)})
    name, sha256 = folder.save(saved)
    assert torch.equal(folder.load(name, sha256).critic["layers.0.weight"], torch.ones(2, 2))
    (folder.root / name / "critic.safetensors").unlink()
    with pytest.raises(CheckpointError, match="altered"):
        folder.load(name, sha256)


def test_equal_content_has_an_equal_hash_and_replaces_an_uncommitted_folder(folder):
    assert folder.save(checkpoint()) == folder.save(checkpoint())
    assert folder.save(checkpoint(1))[1] != folder.save(checkpoint(2))[1]


@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.safetensors", "state.json"])
def test_an_altered_or_missing_file_is_refused(folder, file):
    name, sha256 = folder.save(checkpoint())
    path = folder.root / name / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="altered"):
        folder.load(name, sha256)
    path.unlink()
    with pytest.raises(CheckpointError, match="unreadable"):
        folder.load(name, sha256)


def test_everything_but_the_committed_checkpoint_is_discarded(folder):
    kept, _ = folder.save(checkpoint(1))
    folder.save(checkpoint(2))
    (folder.root / ".update-00003.partial").mkdir()
    assert folder.keep_only(kept) == [".update-00003.partial", "update-00002"]
    assert [path.name for path in folder.root.iterdir()] == [kept]


def test_optimiser_state_of_an_unknown_parameter_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    with pytest.raises(CheckpointError, match="b/exp_avg"):
        load_optimizer_tensors(optimizer, {"a": parameter}, {"b/exp_avg": torch.zeros(2)})
