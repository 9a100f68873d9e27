"""What is wrong with a file of JSON is said in our words, whoever reads the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from agent.model.config import read_json
from agent.model.lora import CONFIG_NAME, WEIGHTS_NAME, read_adapter
from agent.process.errors import PerennialError
from agent.records import from_json

THEIR_WORDS = re.compile(
    r"Expecting|Extra data|char \d|codec|BOM|Invalid|Unterminated|recursion|integer string", re.I
)
TEXTS = {
    b"": "it is empty",
    b" \n": "it holds nothing but blanks",
    b'{"a": 1': "it ends at line 1, column 8",
    b'{"a": "b': "no JSON at line 1, column 7",
    b"{'a': 1}": "no JSON at line 1, column 2",
    b'{"a": 1}\n}': "no JSON at line 2, column 1",
    b'{"a": 1,}': "no JSON at line 1, column ",
    b'{"a\n": 1}': "no JSON at line 1, column 4",
    b'{"a": "\\x"}': "no JSON at line 1, column 8",
    b'{"a": "\xff"}': "byte 7 is no UTF-8 text",
    b"[" * 200_000: "its values are nested too deeply",
    b"1" * 5000: "it holds a number that is none",
}


@dataclass
class Record:
    """What a column of a ledger holds."""

    a: int


def read_adapter_config(path: Path) -> object:
    path.rename(path.parent / CONFIG_NAME)
    save_file({"x": torch.zeros(1)}, path.parent / WEIGHTS_NAME)
    return read_adapter(path.parent)


READERS: dict[str, Callable[[Path], object]] = {
    "model": read_json,
    "adapter": read_adapter_config,
    "record": lambda path: from_json(Record, path.read_bytes(), path.name),
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:12]))
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_json_is_said_in_our_words(reader: str, text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(PerennialError) as told:
        READERS[reader](path)
    assert TEXTS[text] in str(told.value)
    assert not THEIR_WORDS.search(str(told.value)), told.value
