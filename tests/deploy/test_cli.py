"""The `perennial` command hands every word to the program that is meant."""

import importlib.util

import pytest

from deploy.local import cli


def started(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command would become, from `-m` on."""
    commands: list[list[str]] = []
    monkeypatch.setattr(cli.os, "execve", lambda path, words, environment: commands.append(words))
    cli.main(words)
    (command,) = commands
    return command[command.index("-m") + 1 :]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model", "inspect", "x", "--json"], ["agent.cli_model", "inspect", "x", "--json"]),
        (["model", "--help"], ["agent.cli_model", "--help"]),
        (["model"], ["agent.cli_model"]),
        (
            ["model", "to-discrete", "a", "b", "steps=1"],
            ["learner.to_discrete", "a", "b", "steps=1"],
        ),
        (["adapters", "export", "run"], ["agent.cli_adapters", "export", "run"]),
        (["eval", "seed=1"], ["deploy.local.run", "budget=eval", "seed=1"]),
    ],
)
def test_words_reach_their_program(
    words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started(words, monkeypatch) == expected


def test_every_program_exists() -> None:
    modules = {command.module for command in cli.COMMANDS.values()}
    modules |= {inner for command in cli.COMMANDS.values() for inner in command.inner.values()}
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []
