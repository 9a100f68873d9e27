"""Every command that writes may be given twice: the second time changes nothing or is refused.

`CASES` and `READ_ONLY` name every command and action that there is: a new one has to be put there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finished_run import FinishedRun

from agent import cli_adapters, cli_keys, cli_model
from agent.adapters import AdapterStore
from agent.durable import _UNFINISHED
from agent.episode_writer import EpisodeWriter
from deploy import setup
from deploy.bench import __main__ as bench
from deploy.local import report, run
from deploy.local.cli import COMMANDS
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from learner import demos_export
from sim_bridge.demos import __main__ as demos

sys.path.append(str(Path(__file__).parents[1] / "agent"))
from episode_fixtures import make_chunk, make_end, make_meta
from server_fixtures import running

NANO = Path(__file__).parents[2] / "agent" / "assets" / "nano"
REFUSED = "refused"  # the second time, with the reason
SAME = "same"  # the second time succeeds and changes nothing
# Commands that write nothing.
READ_ONLY = {
    "adapters list", "dry-run", "episodes list", "episodes show", "episodes verify", "keys list",
    "model inspect", "model verify", "plan",
}  # fmt: skip
# Repeated in tests of their own, with real processes or servers: each does give its command twice.
TWICE = "tests/process/test_repeated_processes.py::test_a_finished_run_whose_processes_start_again"
ELSEWHERE = {
    "adapters activate": f"{__file__}::test_a_switch_that_is_given_twice_is_made_once",
    "adapters rollback": f"{__file__}::test_a_switch_that_is_given_twice_is_made_once",
    "bench": "tests/process/test_bench_run.py::test_a_run_that_goes_on_from_a_shared_beginning",
    "demos import": "tests/learner/test_libero_import.py::test_the_same_import_again",
    "learn": TWICE,
    "model to-discrete": "tests/learner/test_to_discrete.py::test_the_command",
    "robot": "tests/process/test_realtime_robot.py::test_the_same_robot_again",
    "serve": TWICE,
    "sim": TWICE,
}


def actions_of(name: str) -> Iterator[str]:
    """The actions of a command, or the command itself."""
    command = COMMANDS[name]
    yield from (f"{name} {word}" for word in command.inner)
    module = importlib.import_module(command.module)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{command.module}.__main__")
    parser = module._parser() if hasattr(module, "_parser") else argparse.ArgumentParser()
    choices = [each.choices for each in parser._actions if isinstance(each.choices, dict)]
    if not choices:
        yield name
    for each in choices:
        yield from (f"{name} {word}" for word in each)


def test_every_command_and_action_is_here() -> None:
    known = {action for name in COMMANDS for action in actions_of(name)}
    assert known == {*READ_ONLY, *ELSEWHERE, *CASES}
    for pointer in ELSEWHERE.values():
        path, test = pointer.split("::")
        assert f"def {test}" in (Path(__file__).parents[2] / path).read_text(), pointer


def snapshot(folder: Path) -> dict[str, str]:
    """Name -> hash of every file below a folder; locks and what tells the time apart.

    Nor do SQLite's notes beside a database count, which come and go with those who read it.
    """
    passing = (".png", ".db-shm", ".db-wal")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "state.json") and path.suffix not in passing
    }


def make_keys(folder: Path) -> None:
    assert cli_keys.main(["init", str(folder / "keys")]) == 0


def add_client(folder: Path) -> None:
    make_keys(folder)
    assert cli_keys.main(["add", str(folder / "keys"), "arm", "--may", "act"]) == 0


def make_adapter(folder: Path) -> str:
    """A run's folder with one version; returns its name."""
    from agent.model.lora import attach_lora, save_adapter
    from agent.model.policy_model import load_policy_model

    model = load_policy_model("", {}, ("agentview", "wrist"), "tabletop")
    network = attach_lora(model.network, 2, 4.0)
    for name, weights in network.named_parameters():
        if "lora_B" in name:
            weights.data.fill_(0.01)  # one that changes nothing is refused
    save_adapter(network, folder / "adapter")
    files = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    made = {"parent": "base", "task": "t", "base_sha256": model.base_sha256, "method": "grpo"}
    return AdapterStore(folder / "adapters").publish(1, files, metrics={}, **made).version


def model_merge(folder: Path) -> list[str]:
    make_adapter(folder)
    return ["merge", str(NANO), str(folder / "adapter"), str(folder / "out")]


def adapters_export(folder: Path) -> list[str]:
    return ["export", str(folder), make_adapter(folder), str(folder / "out")]


def demos_export_words(folder: Path) -> list[str]:
    meta = make_meta()
    (folder / "run").mkdir()
    writer = EpisodeWriter(folder / "run" / f"{meta.episode_id}.mcap", meta)
    writer.append(make_chunk(0))
    writer.seal(make_end(1))
    return [str(folder / "run"), "--to=lerobot-v3", f"--out={folder / 'out'}"]


def demos_collect(folder: Path) -> list[str]:
    words = ["--suite=tabletop", f"--out={folder / 'out'}", "--frames=6", "--shard-frames=3"]
    return ["collect", *words, "--chunk=2", "--image-size=16"]


def keys_add(folder: Path) -> list[str]:
    make_keys(folder)
    return ["add", str(folder / "keys"), "arm", "--may", "act"]


def keys_allow(folder: Path) -> list[str]:
    add_client(folder)
    pair = folder / "keys" / "clients" / "arm" / "client.key"
    cli_keys.main(["init", str(folder / "other")])
    assert pair.is_file()
    return ["allow", str(folder / "keys"), "leg", str(folder / "other" / "server.key"),
            "--may", "act"]  # fmt: skip


def keys_remove(folder: Path) -> list[str]:
    add_client(folder)
    return ["remove", str(folder / "keys"), "arm"]


def setup_words(folder: Path) -> list[str]:
    return ["systemd", f"--state-dir={folder / 's'}", f"--keys-dir={folder / 'k'}", "suite=toy"]


def finished(folder: Path) -> Path:
    made = FinishedRun(folder / "run")
    made.add_everything()
    made.write()
    return folder / "run"


def eval_words(folder: Path) -> list[str]:
    return run_words(folder, *COMMANDS["eval"].fixed)


def run_words(folder: Path, budget: str = "budget=smoke") -> list[str]:
    words = ["suite=toy", budget, f"run_dir={folder / 'run'}"]
    config = compose_run(words)
    made = RunFolder(config.settings.run_dir)
    with made.lock():
        made.prepare(config, {})
        made.keep({}, finished=True)
    (made.path / "learner").mkdir()
    (made.path / "learner" / "results.json").write_text(json.dumps(FinishedRun(folder).results()))
    return words


# Command -> what prepares and gives its words, what it runs, and what becomes of the second time.
CASES: dict[str, tuple[Callable[[Path], list[str]], Callable[[list[str]], int], str]] = {
    "adapters export": (adapters_export, cli_adapters.main, REFUSED),
    "demos collect": (demos_collect, demos.main, SAME),
    "demos export": (demos_export_words, demos_export.main, REFUSED),
    "eval": (eval_words, run.main, SAME),
    "keys add": (keys_add, cli_keys.main, SAME),
    "keys allow": (keys_allow, cli_keys.main, SAME),
    "keys init": (lambda folder: ["init", str(folder / "keys")], cli_keys.main, SAME),
    "keys remove": (keys_remove, cli_keys.main, SAME),
    "model merge": (model_merge, cli_model.main, REFUSED),
    "report": (lambda folder: [str(finished(folder))], report.main, SAME),
    "run": (run_words, run.main, SAME),
    "setup": (setup_words, setup.main, SAME),
}


@pytest.mark.parametrize("name", CASES)
def test_the_second_time_changes_nothing_or_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, main, second = CASES[name]
    words = prepare(tmp_path)
    assert main(words) == 0
    before = snapshot(tmp_path)
    capsys.readouterr()
    status = main(words)
    said = capsys.readouterr().err
    assert snapshot(tmp_path) == before
    if second == REFUSED:
        assert status in (1, 2)
        (line,) = said.strip().splitlines()
        assert "name" in line or "choose" in line
        assert "Traceback" not in said
    else:
        assert status == 0


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] == REFUSED])
def test_a_killed_one_does_not_block_its_repetition(name: str, tmp_path: Path) -> None:
    prepare, main, _ = CASES[name]
    words = prepare(tmp_path)
    half = tmp_path / ".out.0123456789abcdef"  # as new_folder leaves it
    half.mkdir()
    (half / _UNFINISHED).touch()
    (half / "config.json").write_text("{")
    (tmp_path / "out.partial").mkdir()  # a person's
    assert main(words) == 0
    assert not half.exists()
    assert (tmp_path / "out.partial").is_dir()
    assert not (tmp_path / "out" / _UNFINISHED).exists()


def test_a_switch_that_is_given_twice_is_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `activate`, the second changes nothing; of `rollback`, it is refused."""

    def journaled() -> list[str]:
        with sqlite3.connect(tmp_path / "agent" / "agent.db") as ledger:
            return [v for (v,) in ledger.execute("SELECT version FROM activations ORDER BY seq")]

    with running(tmp_path) as server:
        endpoint = f"--endpoint={server.server.operator_endpoint}"
        v1, v2 = server.publish(1), server.publish(2)
        for version in (v1, v1, v2, v2):
            assert cli_adapters.main(["activate", str(tmp_path), version, endpoint]) == 0
        assert journaled() == [v1, v2]
        assert cli_adapters.main(["rollback", str(tmp_path), endpoint]) == 0
        capsys.readouterr()
        assert cli_adapters.main(["rollback", str(tmp_path), endpoint]) == 1
        assert "--again" in capsys.readouterr().err
        assert journaled() == [v1, v2, v1]


PERSONS = ("report.md", "curves.png", "meta.json", "tokenizer.json", "see.pt", "notes")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ("bench", "demos collect", "nano")
        for kind in ("file", "folder", "link", "lost link")
        if (name, kind) != ("bench", "lost link")  # which makes the folder that is meant
    ],
)
def test_what_is_anothers_is_left_as_it_is(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, mine = tmp_path / "given", tmp_path / "mine"
    mine.mkdir()
    for each in PERSONS:
        (mine / each).write_text(f"a person's {each}")
    if kind == "file":
        given.write_text("a person's")
    elif kind == "folder":
        mine = mine.rename(given)
    else:
        given.symlink_to(mine if kind == "link" else tmp_path / "gone")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status = WRITERS[name](given)
    said = capsys.readouterr().err
    assert status in (1, 2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert str(given) in said or str(given.resolve()) in said
    assert len(said.splitlines()) == 1
    assert "Errno" not in said
    assert "name another" in said or "name a new" in said or "choose another" in said


def bench_report(out: Path) -> int:
    words = ["--report", "suite=toy", "budget=smoke", "method=sequential", "seeds=1"]
    return bench.main([*words, f"out={out}"])


def collect_into(out: Path) -> int:
    return demos.main(["collect", "--suite=tabletop", f"--out={out}", "--frames=1"])


def learn_nano(work: Path) -> int:
    from learner import nano

    try:
        nano.main(["demos=[nowhere]", f"work={work}", f"out={work.parent / 'new'}"])
    except SystemExit as error:
        print(error.code, file=sys.stderr)
        return 1
    return 0


WRITERS: dict[str, Callable[[Path], int]] = {
    "bench": bench_report, "demos collect": collect_into, "nano": learn_nano,
}  # fmt: skip


def test_a_report_of_ours_is_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        assert bench_report(tmp_path / "out") == 0
    (tmp_path / "out" / "notes").write_text("a person's")
    (tmp_path / "out" / "report.md").unlink()
    (tmp_path / "out" / "results").mkdir()
    (tmp_path / "out" / "curves.png").touch()  # as one leaves it that was killed then
    assert bench_report(tmp_path / "out") == 0
    before = snapshot(tmp_path)
    assert bench_report(tmp_path / "out") == 0
    assert snapshot(tmp_path) == before


def test_half_a_recording_is_completed_to_the_same_set(tmp_path: Path) -> None:
    words = demos_collect(tmp_path)
    assert demos.main(words) == 0
    whole = snapshot(tmp_path)
    (tmp_path / "out" / "shard-00001.npz").unlink()
    assert demos.main(words) == 0
    assert snapshot(tmp_path) == whole
    (tmp_path / "out" / "meta.json").write_text("{")
    assert demos.main(words) == 2


def test_half_the_keys_are_completed(tmp_path: Path) -> None:
    add_client(tmp_path)
    keys = tmp_path / "keys"
    whole = snapshot(keys)
    for missing in ("server.key", "clients/arm/client.key", "clients/arm/server.key"):
        (keys / missing).unlink()
        assert cli_keys.main(["init", str(keys)]) == 0
        assert cli_keys.main(["add", str(keys), "arm", "--may", "act"]) == 0
        assert snapshot(keys) == whole, missing


def test_a_removed_clients_folder_loses_nothing_but_its_keys(tmp_path: Path) -> None:
    add_client(tmp_path)
    own = tmp_path / "keys" / "clients" / "arm"
    (own / "notes").write_text("mine")
    assert cli_keys.main(["remove", str(tmp_path / "keys"), "arm"]) == 0
    assert [path.name for path in own.iterdir()] == ["notes"]
    elsewhere = tmp_path / "elsewhere"
    assert cli_keys.main(["add", str(tmp_path / "keys"), "leg", "--may", "act", "--out",
                          str(elsewhere)]) == 0  # fmt: skip
    (tmp_path / "keys" / "clients" / "leg").symlink_to(elsewhere)
    assert cli_keys.main(["remove", str(tmp_path / "keys"), "leg"]) == 0
    assert (elsewhere / "client.key_secret").is_file()


def test_a_model_that_is_there_is_not_trained_over(tmp_path: Path) -> None:
    from learner import nano

    shutil.copytree(NANO, tmp_path / "mine")
    before = snapshot(tmp_path / "mine")
    words = ["demos=[d]", f"work={tmp_path / 'w'}", f"out={tmp_path / 'mine'}"]
    with pytest.raises(SystemExit, match="was not made with this work="):
        nano.main(words)
    assert snapshot(tmp_path / "mine") == before


def test_what_is_to_be_pasted_into_a_shell_is_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = run_words(tmp_path / "it's #1")
    assert run.main(words) == 0
    quoted = shlex.quote(str(tmp_path / "it's #1" / "run"))
    assert f"rm -r {quoted}," in " ".join(capsys.readouterr().out.split())
