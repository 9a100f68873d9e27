"""Merged weights: always from the pristine base, beside versions that are served unmerged."""

import hashlib
from pathlib import Path

import pytest
import torch
from adapter_fixtures import RANKS, answer, fill_bank, shallow_model, write_adapters
from closeness import assert_near

from agent.model.lora import read_adapter
from agent.model.slots import SlotBank


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_adapters(folder, shallow_model)
    return folder


def base_digest(bank: SlotBank) -> str:
    digest = hashlib.sha256()
    for _, parameter in sorted(bank.model.named_parameters()):
        digest.update(parameter.detach().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def merged_weights(bank: SlotBank) -> list[torch.Tensor]:
    return [b.clone() for name, b in bank.model.named_buffers() if name.endswith(".merged")]


def test_a_hundred_merges_leave_the_base_and_drift_nowhere(folder: Path) -> None:
    # In bfloat16, where adding and subtracting an update again and again would drift.
    bank = SlotBank(shallow_model().bfloat16(), slots=4, rank=4, merged=True)
    fill_bank(bank, folder)
    before = base_digest(bank)
    fresh = {}
    for slot in RANKS:
        other = SlotBank(shallow_model().bfloat16(), slots=4, rank=4, merged=True)
        other.load(slot, *read_adapter(folder / str(slot)))
        other.merge(slot)
        fresh[slot] = merged_weights(other)
    for count in range(100):
        slot = 1 + count % 3
        bank.merge(slot)
        if count >= 97:
            pairs = zip(merged_weights(bank), fresh[slot], strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert base_digest(bank) == before


@torch.no_grad()
def test_another_version_is_published_while_one_is_merged(folder: Path) -> None:
    bank = SlotBank(shallow_model(), slots=4, rank=4, merged=True)
    fill_bank(bank, folder)
    config = bank.model.config
    bank.merge(1)
    bank.select([1, 1])
    merged = answer(bank.model, config)
    bank.load(2, *read_adapter(folder / "3"))
    bank.select([1, 1])
    assert torch.equal(answer(bank.model, config), merged)
    bank.select([2, 2])
    two = answer(bank.model, config)
    bank.select([3, 3])
    assert_near(answer(bank.model, config), two)

    bank.load(1, *read_adapter(folder / "3"))
    assert bank.merged_slot is None
    bank.select([1, 1])
    assert_near(answer(bank.model, config), two)


def test_merging_is_opt_in_and_never_of_the_base() -> None:
    with pytest.raises(ValueError, match="merged=True"):
        SlotBank(shallow_model(), slots=2, rank=2).merge(1)
    with pytest.raises(ValueError, match="slot must be in"):
        SlotBank(shallow_model(), slots=2, rank=2, merged=True).merge(0)
