"""Options of the commands: what cannot be meant is refused with what was expected."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from agent.process.arguments import real_number, whole_number, whole_numbers
from deploy.local.cli import COMMANDS

OTHERS = ("learner.dryrun",)  # asked by a command
STRANGE = (
    "",
    "x",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "9" * 5000,
    "0x10",
    "١٢",
    "\x1b[2J",
    "1,,2",
)


def modules() -> Iterator[ModuleType]:
    for command in COMMANDS.values():
        for name in (command.module, *command.inner.values()):
            module = importlib.import_module(name)
            yield (
                importlib.import_module(f"{name}.__main__")
                if hasattr(module, "__path__")
                else module
            )
    yield from map(importlib.import_module, OTHERS)


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options(inner)
        elif action.type is not None:
            yield action


def all_options() -> list[argparse.Action]:
    return [
        option for module in modules() if hasattr(module, "_parser")
        for option in options(module._parser())
    ]  # fmt: skip


def test_no_option_is_refused_in_argparses_words() -> None:
    """Else it names a function of ours: `invalid _count value: 'x'`."""
    found = all_options()
    assert len(found) > 25
    for option in found:
        for text in STRANGE:
            said = ""
            try:
                option.type(text)  # type: ignore[operator]
            except argparse.ArgumentTypeError as error:
                said = str(error)
            except (ValueError, TypeError) as error:
                pytest.fail(f"{option.option_strings or option.dest} of {text!r}: {error!r}")
            assert said.isprintable()


def test_numbers_have_limits_and_are_numbers() -> None:
    for read, good, bad in (
        (whole_number(1, 9), "7", ("0", "10", "1.5", "x", "")),
        (real_number(0, 1), "0.5", ("-0.1", "1.1", "nan", "inf", "x", "")),
        (real_number(0, 1, is_open=True), "1", ("0", "nan")),
        (whole_numbers(0, 9), "1,2", ("1,x", "", "1,,2", "10")),
    ):
        read(good)
        for text in bad:
            with pytest.raises(argparse.ArgumentTypeError, match=r"expected a (whole )?number"):
                read(text)


def test_an_empty_path_is_not_the_working_directory() -> None:
    """As of "$RUN" where nobody set RUN."""
    paths = [option for option in all_options() if option.type.__name__ == "user_path"]  # type: ignore[union-attr]
    assert len(paths) > 12
    for option in paths:
        with pytest.raises(argparse.ArgumentTypeError, match="empty"):
            option.type("")  # type: ignore[operator]
