"""A run's own records, damaged: told in one line, made again where something else knows, or left
out; never a traceback.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damages import alter, byte_damages, json_damages, remove
from finished_run import FinishedRun, write_lines

from agent.process.errors import PerennialError
from agent.process.json_files import DamagedFile
from deploy.bench.fork import BEGINNING_FILE, inherited_sessions
from deploy.bench.results import chunk_size, collect_result, read_results, write_result
from deploy.local import report
from deploy.local.checker import recount
from deploy.local.progress import Plan, Progress
from deploy.local.recorded import STATE_NAME
from deploy.local.records import read_records
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from deploy.local.shapes import END, EVENT, EVENTS
from deploy.local.summary import build_summary, compare
from deploy.local.tail import JsonTail

RESULTS, LOG, CONFIG = "learner/results.json", "sim-0/client.jsonl", "config/run.yaml"
PROGRESS, PROBE = "learner/progress.jsonl", "probe.jsonl"
EVAL = {
    "event": "eval", "unix_s": 999.0, "row": 0, "mode": "rollout", "task": "push",
    "successes": 1, "trials": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody changes."""
    run = FinishedRun(tmp_path_factory.mktemp("whole") / "run")
    run.add_everything()
    run.write()
    events = [EVAL, *JsonTail(run.run_dir / PROGRESS).read()]
    write_lines(run.run_dir / PROGRESS, events)
    return run.run_dir


@pytest.fixture
def run_dir(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "run")


def damaged_lines(path: Path) -> Iterator[str]:
    """Damages `path` in one way after another: its bytes, or what is in its first value."""
    content = path.read_bytes()
    first, _, others = content.partition(b"\n") if path.suffix == ".jsonl" else (content, b"", b"")
    for name, damage in byte_damages():
        damage(path)
        yield name
        remove(path)
        path.write_bytes(content)
    if path.suffix != ".yaml":
        for name, text in json_damages(json.loads(first), most=12):
            path.write_bytes(text + b"\n" + others)
            yield name
    path.write_bytes(content)


def refused(work: Callable[[], object], path: Path, damage: str) -> bool:
    """Whether it was refused, in a line that names the file and a way out."""
    try:
        work()
    except PerennialError as error:
        text = str(error)
    else:
        return False
    assert path.name in text or path.parent.name in text, f"{damage}: {text}"
    assert "\n" not in text, damage
    assert "; " in text, f"{damage}: {text}"
    return True


def summarise(run_dir: Path) -> dict:
    records = read_records(run_dir)
    return build_summary(records, recount(records))


@pytest.mark.parametrize("name", [STATE_NAME, RESULTS, CONFIG, LOG, PROGRESS, PROBE])
def test_a_report_of_damaged_records_is_right_or_one_line(run_dir: Path, name: str) -> None:
    figures = {key: summarise(run_dir)[key] for key in ("matrix", "episodes")}
    for damage in damaged_lines(run_dir / name):
        found: list[dict] = []
        is_refused = refused(
            lambda found=found: found.append(summarise(run_dir)), run_dir / name, damage
        )
        if name in (STATE_NAME, CONFIG, PROGRESS, PROBE) and not is_refused:
            assert {key: found[0][key] for key in figures} == figures, damage


@pytest.mark.parametrize("name", [STATE_NAME, CONFIG])
def test_state_and_settings_stand_in_for_each_other(
    run_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = json.loads((run_dir / STATE_NAME).read_text())
    state["settings"] = read_records(run_dir).config
    (run_dir / STATE_NAME).write_text(json.dumps(state))
    before = summarise(run_dir)
    (run_dir / name).write_bytes((run_dir / name).read_bytes()[:-20] + b"\xff\x00")
    assert report.main([str(run_dir)]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"perennial report: {run_dir / name} is damaged: ")
    assert said.count("\n") == 1
    after = json.loads((run_dir / "summary.json").read_text())
    lost = ("settings", "restarts", "wall_s", "swaps") if name == STATE_NAME else ()
    for key in set(before) - set(lost):
        assert after[key] == before[key], key


def test_both_damaged_is_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (STATE_NAME, CONFIG):
        (run_dir / name).write_bytes(b"\xff\x00")
    assert report.main([str(run_dir)]) == 2
    assert "restore it from a backup" in capsys.readouterr().err


def test_a_damaged_line_of_a_log_is_told_and_the_ledger_vouches_for_the_episode(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(run_dir)]) == 0
    lines = (run_dir / LOG).read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b'"outcome"', b'"out\x07ome"')
    (run_dir / LOG).write_bytes(b"\n".join(lines))
    capsys.readouterr()
    assert report.main([str(run_dir), "--recount"]) == 0
    said = capsys.readouterr()
    assert f"{run_dir / LOG}: 1 damaged or torn lines are left out" in said.err
    assert "1 of them unseen by their client" in " ".join(said.out.split())


def test_a_damaged_summary_is_made_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(run_dir)]) == 0
    path = run_dir / "summary.json"
    records = read_records(run_dir)
    for damage in damaged_lines(path):
        capsys.readouterr()
        assert report.main([str(run_dir), "--recount"]) in (0, 1, 2), damage
    path.write_text('{"base_avg": ')
    assert report.main([str(run_dir), "--recount"]) == 2
    assert f"perennial report {run_dir}" in capsys.readouterr().err
    assert report.main([str(run_dir)]) == 0
    assert compare(json.loads(path.read_text()), records, recount(records)) == []


@pytest.mark.parametrize("name", [LOG, PROGRESS])
def test_a_live_view_leaves_damaged_lines_out(run_dir: Path, name: str) -> None:
    for damage in damaged_lines(run_dir / name):
        progress = Progress(Plan(["push", "pick"], ["stack"], 2, 8, 40))

        def look(progress: Progress = progress) -> None:
            progress.add_events(JsonTail(run_dir / PROGRESS, EVENT, EVENTS).read())
            progress.add_ends(JsonTail(run_dir / LOG, END).read())
            progress.add_events([])
            progress.stage(), progress.left_s(), progress.share_done()

        if damage not in ("folder", "link to itself"):  # these are OSErrors, which a run bears
            refused(look, run_dir / name, damage)


@pytest.mark.slow
def test_a_run_goes_on_without_its_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = compose_run(["suite=tabletop", f"run_dir={tmp_path / 'run'}"])
    other = compose_run([*config.overrides, "seed=7"])
    folder = RunFolder(config.settings.run_dir)
    folder.path.mkdir()
    folder.prepare(config, {})
    (folder.path / "learner").mkdir()
    stamps = [
        {"event": "start", "unix_s": 1.7e9, "version": "base"},
        {"event": "x", "unix_s": 1.8e9},
    ]
    write_lines(folder.path / PROGRESS, stamps)
    for number, damage in enumerate(damaged_lines(folder.state_path)):
        if number % 6:
            continue  # each composes the settings anew
        refused(
            lambda: (folder.is_finished(), RunFolder(folder.path).prepare(config, {})),
            folder.state_path,
            damage,
        )
        for aside in folder.path.glob("state.json.damaged-*"):
            remove(aside)
    whole = folder.state_path.read_bytes()
    folder.state_path.write_bytes(whole[:100])
    with pytest.raises(PerennialError, match="seed=0"):  # the settings are still guarded
        RunFolder(folder.path).prepare(other, {})
    assert RunFolder(folder.path).prepare(config, {})
    (aside,) = folder.path.glob("state.json.damaged-*")
    assert aside.read_bytes() == whole[:100]
    first, *_ = json.loads(folder.state_path.read_text())["sessions"]
    assert first == {"began_unix_s": 1.7e9, "ended_unix_s": 1.8e9, "restarts": {}}
    assert "is kept as" in caplog.text


def test_a_run_without_whole_results_is_not_finished(run_dir: Path) -> None:
    assert RunFolder(run_dir).is_finished()
    (run_dir / RESULTS).write_bytes((run_dir / RESULTS).read_bytes()[:50])
    assert not RunFolder(run_dir).is_finished()


def test_a_damaged_result_of_a_comparison_counts_as_missing(run_dir: Path, tmp_path: Path) -> None:
    records = read_records(run_dir)
    records.config["model"] |= {"architecture": {}, "model_dir": str(tmp_path)}
    results = tmp_path / "results"
    result = collect_result(
        "cell", ["suite=toy"], records, build_summary(records, recount(records))
    )
    path = write_result(results, result)
    for damage in damaged_lines(path):

        def read() -> None:
            for each in read_results(results, ["cell"])[0].values():
                each.rollout.figures(), each.greedy.figures(), each.temperature

        refused(read, path, damage)
    alter(path, count=40)
    assert read_results(results, ["cell"]) == ({}, ["cell"])
    write_result(results, result)
    assert read_results(results, ["cell"])[1] == []
    assert len(list(results.glob("cell.json.damaged-*"))) == 1


def test_what_else_a_comparison_reads_is_one_line_or_does_without(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"chunk_size": 5}')
    for damage in damaged_lines(config):
        refused(
            lambda: chunk_size({"architecture": {}, "model_dir": str(tmp_path)}), config, damage
        )
    beginning = tmp_path / BEGINNING_FILE
    beginning.write_text('{"sessions": 2}')
    for damage in damaged_lines(beginning):
        refused(lambda: inherited_sessions(tmp_path), beginning, damage)
    beginning.write_text("{")
    with pytest.raises(DamagedFile, match="delete it"):
        inherited_sessions(tmp_path)
