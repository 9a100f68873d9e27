"""A compiled model serves other adapters and other batches without being compiled again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_fixtures import answer, shallow_model, train_fake_adapter
from closeness import COMPILED, FORWARD, assert_near
from compiler_fixtures import require_compiler
from model_fixtures import tiny_model
from torch._dynamo.utils import counters
from torch.compiler import set_stance

from agent.model.lora import read_adapter
from agent.model.openvla import OpenVLA
from agent.model.slots import SlotBank

Banks = tuple[SlotBank, SlotBank, torch.nn.Module]


def build(make: Callable[[], OpenVLA], backend: str, folder: Path) -> Banks:
    """An eager bank, a masked one, and the masked one's model compiled by `backend`."""
    torch._dynamo.reset()
    counters.clear()
    for slot, rank in enumerate((4, 2, 3), start=1):
        train_fake_adapter(folder / str(slot), rank, alpha=8.0, seed=slot, model=make())
    bank = SlotBank(make(), slots=4, rank=4, masked=True, merged=True)
    compiled = torch.compile(bank.model, fullgraph=True, backend=backend)
    return SlotBank(make(), slots=4, rank=4), bank, compiled


def check_rows(banks: Banks, slots: list[int], share: float = FORWARD) -> None:
    eager, bank, compiled = banks
    bank.select(slots)
    eager.select(slots)
    ours = answer(compiled, bank.model.config, 3)
    theirs = answer(eager.model, bank.model.config, 3)
    assert_near(ours, theirs, share)


def check_publishing(banks: Banks, folder: Path, share: float = FORWARD) -> None:
    """Publish into every slot, one of them twice, and serve uniform and mixed batches."""
    eager, bank, _ = banks
    check_rows(banks, [0, 0, 0], share)
    assert counters["stats"]["unique_graphs"] == 1
    with set_stance("fail_on_recompile"):
        for slot, name in ((1, "3"), (2, "2"), (3, "1"), (1, "2")):
            for each in (bank, eager):
                each.load(slot, *read_adapter(folder / name))
            for slots in ([slot] * 3, [0, slot, 3], [0] * 3):
                check_rows(banks, slots, share)
    assert counters["stats"]["unique_graphs"] == 1


def check_merging(banks: Banks, share: float) -> None:
    """One graph more serves every merged version."""
    bank = banks[1]
    bank.merge(1)
    check_rows(banks, [1, 1, 1], share)
    assert counters["stats"]["unique_graphs"] == 2
    with set_stance("fail_on_recompile"):
        for merged, slots in ((2, [2] * 3), (2, [1, 2, 0]), (3, [3] * 3), (3, [0] * 3)):
            bank.merge(merged)
            check_rows(banks, slots, share)
    assert counters["stats"]["unique_graphs"] == 2


@torch.no_grad()
@pytest.mark.slow
def test_publishing_and_selecting_never_recompile(tmp_path: Path) -> None:
    check_publishing(build(shallow_model, "aot_eager", tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.long  # a compiler runs for two minutes
@torch.no_grad()
def test_generated_code_serves_published_and_merged_versions(tmp_path: Path) -> None:
    require_compiler()
    banks = build(tiny_model, "inductor", tmp_path)
    check_publishing(banks, tmp_path, COMPILED)
    check_merging(banks, COMPILED)
