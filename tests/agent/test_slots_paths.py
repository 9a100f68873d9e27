"""Every way a bank serves a batch gives each row what PEFT gives its adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_fixtures import (
    RANKS,
    answer,
    fill_bank,
    shallow_model,
    variant_model,
    write_adapters,
)
from closeness import assert_near
from peft import PeftModel

from agent.model.lora import read_adapter
from agent.model.network import PolicyNetwork
from agent.model.slot_layers import Selection, SlotLinear
from agent.model.slots import SlotBank

BATCHES = ([3, 0, 1, 2, 1], [1] * 5, [0] * 5, [2, 2, 2, 2, 3])


def convolutional_model() -> PolicyNetwork:
    return variant_model("cnn")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, PeftModel]]:
    folder = tmp_path_factory.mktemp("adapters")
    return folder, write_adapters(folder, shallow_model)


@pytest.mark.parametrize("make", [shallow_model, convolutional_model])
@pytest.mark.parametrize("mode", [{}, {"masked": True}, {"merged": True}])
@torch.no_grad()
def test_three_ranks_in_one_batch_equal_peft(
    mode: dict[str, bool], make: Callable[[], PolicyNetwork], tmp_path: Path
) -> None:
    folder, wrapped = tmp_path, write_adapters(tmp_path, make)
    base = make()
    bank = SlotBank(make(), slots=4, rank=4, **mode)
    fill_bank(bank, folder)
    if "merged" in mode:
        bank.merge(1)
    config = base.config
    expected = {0: answer(base, config, 5)}
    expected.update({slot: answer(model, config, 5) for slot, model in wrapped.items()})
    for slot in RANKS:
        assert (expected[slot] - expected[slot - 1]).abs().max() > 0.05
    for slots in BATCHES:
        bank.select(slots)
        logits = answer(bank.model, config, 5)
        for row, slot in enumerate(slots):
            assert_near(logits[row], expected[slot][row])


@pytest.mark.parametrize("shape", [(6, 8), (6, 5, 8), (6, 2, 3, 8)])
@torch.no_grad()
def test_a_row_is_the_leading_index_whatever_follows(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    selection = Selection(slots=3, rank=2, device=torch.device("cpu"))
    layer = SlotLinear(torch.nn.Linear(8, 7, bias=False), 3, 2, selection, False)
    layer.A[1:].normal_()
    layer.B[1:].normal_()
    x = torch.randn(shape)
    slots = [0, 2, 1]  # two images a row
    of_row = [slot for slot in slots for _ in range(2)]
    weights = [layer.base.weight + layer.B[slot].t() @ layer.A[slot] for slot in of_row]
    expected = torch.stack([row @ weight.t() for row, weight in zip(x, weights, strict=True)])
    for path in ("gathered", "masked"):
        selection.path = path
        selection.write(slots)
        assert_near(layer(x), expected)
        assert_near(layer.rows(x, 2, 5), expected[..., 2:5])


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_an_overflowing_adapter_stays_in_its_rows(
    masked: bool, adapters: tuple[Path, dict[int, PeftModel]]
) -> None:
    tensors, spec = read_adapter(adapters[0] / "2")
    bank = SlotBank(shallow_model(), slots=3, rank=2, masked=masked)
    bank.load(1, tensors, spec)
    config = bank.model.config
    bank.select([1, 0, 1])
    before = answer(bank.model, config, 3)
    huge = {k: torch.full_like(v, 3e38) if "lora_A" in k else v for k, v in tensors.items()}
    bank.load(2, huge, spec)
    bank.select([1, 2, 1])
    after = answer(bank.model, config, 3)
    assert not after[1].isfinite().all()
    assert_near(after[[0, 2]], before[[0, 2]])


@torch.no_grad()
def test_selecting_in_inference_mode_does_not_bind_later_calls(
    adapters: tuple[Path, dict[int, PeftModel]],
) -> None:
    bank = SlotBank(shallow_model(), slots=4, rank=4, masked=True)
    fill_bank(bank, adapters[0])
    with torch.inference_mode():
        bank.select([1, 2])
        inside = answer(bank.model, bank.model.config)
    bank.select([2, 1])
    bank.select([1, 2])
    assert torch.equal(answer(bank.model, bank.model.config), inside)
