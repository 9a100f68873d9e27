"""Memory that runs out is told in our words; other errors stay what they are."""

import pytest
import torch

from learner.exhausted import NoMemoryLeft, memory_errors


def exhaust_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def exhaust_python() -> None:
    bytearray(2**60)


@pytest.mark.parametrize("exhaust", [exhaust_torch, exhaust_python])
def test_what_libraries_say_of_memory_is_one_error(exhaust) -> None:
    with (
        pytest.raises(NoMemoryLeft, match=r"no memory left: give learner\.micro_batch"),
        memory_errors(),
    ):
        exhaust()


def test_what_onednn_says_of_memory_is_one_too() -> None:
    with pytest.raises(NoMemoryLeft), memory_errors():
        raise RuntimeError("could not create a primitive")


def test_another_error_stays() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes differ")
