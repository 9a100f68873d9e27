"""The report of a finished run, and a recount that notices every kind of tampering."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_disk import FULL, FaultyDisk
from finished_run import FinishedRun, change_ledger, write_lines

from agent.durable import StorageError
from deploy.local import report
from deploy.local.plots import draw_plots, training_ends
from deploy.local.records import read_records
from deploy.local.summary import measure_swaps

REQUIRED = {
    "suite", "seed", "settings", "tasks", "train_tasks", "held_out_tasks", "matrix", "base_avg",
    "base_avg_se", "final_avg", "final_avg_se", "nbt", "nbt_se", "base_zero_shot",
    "base_zero_shot_se", "final_zero_shot", "final_zero_shot_se", "episodes", "swaps", "wall_s",
}  # fmt: skip

NEW_FIGURES = ("nbt_final", "nbt_libero", "bwt", "fwt_", "ft_", "f_crl")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A consistent run, reported; nobody changes it."""
    run = FinishedRun(tmp_path_factory.mktemp("reported") / "run")
    run.add_everything()
    run.write()
    assert report.main([str(run.run_dir)]) == 0
    return run


@pytest.fixture
def run(reported: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy of the reported run, to be tampered with."""
    run = FinishedRun(tmp_path / "run")
    shutil.copytree(reported.run_dir, run.run_dir)
    run.ends = copy.deepcopy(reported.ends)
    return run


def test_a_run_that_only_measured_the_base_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FinishedRun(tmp_path / "run")
    run.add_base()
    run.write()
    assert report.main([str(run.run_dir)]) == 0
    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert summary["final_avg"] is None
    assert f"{100 * summary['base_avg']:.1f} ±" in capsys.readouterr().out
    assert (run.run_dir / "plots" / "success.png").is_file()
    assert report.main([str(run.run_dir), "--recount"]) == 0


def test_records_are_read_from_where_one_stands(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.run_dir.parent)
    assert read_records(Path("run")).ends == read_records(run.run_dir).ends


def test_every_rate_says_what_it_was_measured_under(
    run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(run.run_dir)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "protocol vlacrl, T = 1.6, success at the end" in shown
    assert "greedy (T = 0) 12.5" in shown
    assert "n=4" in shown  # of a cell
    assert "n = 8" in shown  # of both trained tasks
    summary = json.loads((run.run_dir / "summary.json").read_text())
    under = {"protocol": "vlacrl", "temperature": 1.6, "success": "at_end"}
    assert summary["matrix"].items() >= under.items()
    assert summary["greedy"]["matrix"].items() >= (under | {"temperature": 0.0}).items()


def test_a_run_of_before_there_were_protocols_was_disjoint(
    run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.run_dir / "learner" / "results.json"
    results = json.loads(path.read_text())
    for name in ("matrix", "greedy"):
        for key in ("protocol", "temperature", "success"):
            del results[name][key]
    path.write_text(json.dumps(results))
    assert report.main([str(run.run_dir)]) == 0
    assert "protocol disjoint, T = 1.6, success once" in " ".join(capsys.readouterr().out.split())


def test_the_summary_has_every_figure(run: FinishedRun) -> None:
    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert set(summary) >= REQUIRED
    assert summary["base_avg"] == pytest.approx((1 + 2) / 8)
    assert summary["final_avg"] == pytest.approx((2 + 4) / 8)
    assert summary["nbt"] == summary["nbt_final"] == pytest.approx((3 - 2) / 4)
    assert summary["nbt_libero"] == pytest.approx((3 - 2) / 4)
    assert summary["fwt_libero_train"] == pytest.approx(0.5)  # 2 of 4 in each of two iterations
    assert summary["fwt_zero"] is None  # row 1 measured its own task alone
    assert summary["episodes"] == {
        "collected": len(run.ends),
        "trained": 8,
        "filtered": 0,
        "surplus": 0,
        "eval": len(run.ends) - 9,
        "aborted": 1,
        "lost": 0,
        "duplicated": 0,
    }
    assert summary["swaps"]["hold_p50_s"] == pytest.approx(0.002)
    assert summary["swaps"]["probe_gap_max_s"] == pytest.approx(1.0)
    assert summary["wall_s"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("errors", "agent_restarts", "dropped"),
    [
        (["", ""], 0, 0),
        (["server_restarted: aborted by a restart", ""], 1, 0),
        (["server_restarted: say hello first", ""], 0, 1),
        (["unknown_episode: is not known", "overloaded: later"], 1, 2),
        (["", "unanswered"], 1, 1),  # nothing stopped the run there
        (["unanswered", ""], 0, 0),  # before the second session
    ],
)
def test_a_request_is_dropped_unless_a_restart_explains_it(
    tmp_path: Path, errors: list[str], agent_restarts: int, dropped: int
) -> None:
    run = FinishedRun(tmp_path / "run")
    run.add_everything()
    run.write()
    lines = [{"unix_s": 1000.0 + 20 * k, "error": error} for k, error in enumerate(errors)]
    write_lines(run.run_dir / "probe.jsonl", lines)
    restarts = {"agent": agent_restarts}
    began_s = (990.0, 1010.0) if errors[0] == "unanswered" else (990.0,)
    sessions = [{"began_unix_s": s, "ended_unix_s": s, "restarts": restarts} for s in began_s]
    (run.run_dir / "state.json").write_text(
        json.dumps({"settings": {}, "versions": {}, "sessions": sessions})
    )
    assert measure_swaps(read_records(run.run_dir))["dropped_requests"] == dropped


def test_training_is_drawn_in_the_order_of_the_seals_whatever_the_workers_clocks_said(
    tmp_path: Path,
) -> None:
    run = FinishedRun(tmp_path / "run")
    run.add_everything()
    for number, end in enumerate(run.ends):
        end["unix_s"] = 1000.0 - number  # a clock that went backwards
    run.write()
    drawn = [end["episode_id"] for end in training_ends(read_records(run.run_dir))]
    assert len(drawn) > 4
    assert drawn == sorted(drawn)


def test_plots_are_made(run: FinishedRun) -> None:
    assert {path.name for path in (run.run_dir / "plots").iterdir()} == {
        "success.png",
        "matrix.png",
    }


def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()}
    FaultyDisk(monkeypatch, "fsync").error = FULL
    assert report.main([str(run.run_dir)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device; free disk space" in line
    with pytest.raises(StorageError, match="free disk space"):
        draw_plots(read_records(run.run_dir), json.loads(before[run.run_dir / "summary.json"]))
    assert {path: path.read_bytes() for path in before} == before


def test_a_recount_of_an_untouched_run_agrees(run: FinishedRun) -> None:
    assert report.main([str(run.run_dir), "--recount"]) == 0


def test_an_end_that_its_client_did_not_live_to_log_is_no_difference(run: FinishedRun) -> None:
    lines = [end for end in run.ends if end["slot_id"] != "eval/2/rollout/pick/0#0"]
    write_lines(run.run_dir / "sim-0" / "client.jsonl", lines)
    assert report.main([str(run.run_dir), "--recount"]) == 0


def test_a_summary_of_before_a_figure_existed_still_agrees(run: FinishedRun) -> None:
    path = run.run_dir / "summary.json"
    summary = json.loads(path.read_text())
    old = {name: value for name, value in summary.items() if not name.startswith(NEW_FIGURES)}
    path.write_text(json.dumps(old))
    assert report.main([str(run.run_dir), "--recount"]) == 0
    path.write_text(json.dumps({k: v for k, v in old.items() if k != "nbt"}))
    assert report.main([str(run.run_dir), "--recount"]) == 1


def run_again(run: FinishedRun, aside_at: str, slot_id: str) -> None:
    """An episode of the slot that ended otherwise, and was put aside after it was answered."""
    good = next(end for end in run.ends if end["slot_id"] == slot_id)
    outcome = "timeout" if good["outcome"] == "success" else "success"
    bad = good | {"episode_id": "b" * 32, "outcome": outcome}
    write_lines(run.run_dir / "sim-0" / "client.jsonl", [bad, *run.ends])
    change_ledger(
        run.run_dir / "agent" / "agent.db",
        "INSERT INTO episodes (episode_id, order_id, slot_id, suite, task, split, init_state,"
        " phase, version, state, outcome, steps, counted, sealed_seq, meta)"
        " SELECT ?, order_id, slot_id, suite, task, split, init_state, phase, version,"
        " 'quarantined', ?, steps, 0, 999, meta FROM episodes WHERE slot_id = ? AND counted",
        bad["episode_id"], outcome, slot_id,
    )  # fmt: skip
    if aside_at == "learner":
        change_ledger(
            run.run_dir / "learner" / "learner.db",
            "INSERT INTO quarantined VALUES (?, 'f', 'altered', 0)",
            bad["episode_id"],
        )


@pytest.mark.parametrize("slot_id", ["train/0/1/0/0#1", "eval/2/rollout/pick/0#0"])
@pytest.mark.parametrize("aside_at", ["agent", "learner"])
def test_an_episode_that_was_set_aside_and_run_again_is_no_difference(
    run: FinishedRun, aside_at: str, slot_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_again(run, aside_at, slot_id)
    capsys.readouterr()
    assert report.main([str(run.run_dir), "--recount"]) == 0
    assert "1 more of episodes set aside and run again" in " ".join(capsys.readouterr().out.split())


def test_what_the_agent_set_aside_though_the_learner_holds_it_is_no_difference(
    run: FinishedRun,
) -> None:
    change_ledger(
        run.run_dir / "agent" / "agent.db",
        "UPDATE episodes SET state = 'quarantined', counted = 0 WHERE episode_id = ?",
        run.ends[0]["episode_id"],
    )
    assert report.main([str(run.run_dir)]) == 0
    assert report.main([str(run.run_dir), "--recount"]) == 0


def test_an_agent_that_lost_its_ledger_makes_no_difference(run: FinishedRun) -> None:
    change_ledger(run.run_dir / "agent" / "agent.db", "DELETE FROM episodes WHERE sealed_seq < 9")
    assert report.main([str(run.run_dir)]) == 0
    assert report.main([str(run.run_dir), "--recount"]) == 0


def test_an_order_that_was_given_up_has_no_trials(run: FinishedRun) -> None:
    order_id = "eval/0/rollout/push/0"
    learner = run.run_dir / "learner"
    change_ledger(
        learner / "learner.db", "INSERT INTO refused_orders VALUES (?, 'nobody', 0)", order_id
    )
    results = json.loads((learner / "results.json").read_text())
    results["matrix"]["successes"][0][0] -= 1
    results["matrix"]["trials"][0][0] -= 1
    (learner / "results.json").write_text(json.dumps(results))
    assert report.main([str(run.run_dir)]) == 0
    assert report.main([str(run.run_dir), "--recount"]) == 0


def forget_an_episode(run: FinishedRun) -> None:
    change_ledger(
        run.run_dir / "learner" / "learner.db",
        "DELETE FROM episodes WHERE episode_id = ?",
        run.ends[0]["episode_id"],
    )


def leave_an_episode_unused(run: FinishedRun) -> None:
    change_ledger(
        run.run_dir / "learner" / "learner.db",
        "UPDATE episodes SET disposition = NULL WHERE episode_id = ?",
        run.ends[0]["episode_id"],
    )


def train_on_an_evaluation(run: FinishedRun) -> None:
    change_ledger(
        run.run_dir / "learner" / "learner.db",
        "UPDATE episodes SET disposition = 'trained' WHERE episode_id = ?",
        run.ends[0]["episode_id"],
    )


def turn_an_outcome(run: FinishedRun) -> None:
    end = next(end for end in run.ends if end["outcome"] == "timeout")
    end["outcome"] = "success"
    write_lines(run.run_dir / "sim-0" / "client.jsonl", run.ends)


def log_an_end_twice(run: FinishedRun) -> None:
    write_lines(run.run_dir / "sim-0" / "client.jsonl", [*run.ends, run.ends[3]])


def mix_versions(run: FinishedRun) -> None:
    run.ends[3]["versions"].append("v00009-cccccccccccc")
    write_lines(run.run_dir / "sim-0" / "client.jsonl", run.ends)


def polish_the_learning_speed(run: FinishedRun) -> None:
    path = run.run_dir / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"fwt_libero_train": 0.75}))


def polish_the_summary(run: FinishedRun) -> None:
    path = run.run_dir / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"final_avg": summary["final_avg"] + 0.01}))


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (forget_an_episode, "lost"),
        (leave_an_episode_unused, "lost"),
        (train_on_an_evaluation, "trained on, but not a counted training episode"),
        (turn_an_outcome, "ledgers and client log disagree"),
        (log_an_end_twice, "duplicated"),
        (mix_versions, "more than one version"),
        (polish_the_summary, "final_avg: summary says"),
        (polish_the_learning_speed, "fwt_libero_train: summary says 0.75, recount says 0.5"),
    ],
)
def test_a_recount_says_where_it_differs(
    run: FinishedRun,
    tamper: Callable[[FinishedRun], None],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tamper(run)
    capsys.readouterr()
    assert report.main([str(run.run_dir), "--recount"]) == 1
    assert expected in " ".join(capsys.readouterr().out.split())


def test_an_unfinished_run_is_refused(run: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    os.unlink(run.run_dir / "learner" / "results.json")
    assert report.main([str(run.run_dir)]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_a_stray_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[]", "{", "", "\udcff", "[" * 100_000], ids=range(6))
def test_a_damaged_file_of_a_run_is_named(
    run: FinishedRun, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for file in (
        *("config/run.yaml", "state.json", "learner/results.json", "summary.json"),
        *("sim-0/client.jsonl", "probe.jsonl"),
    ):
        path = run.run_dir / file
        whole = path.read_bytes()
        path.write_bytes(f"{text}\n".encode("utf-8", "surrogateescape"))
        status = report.main([str(run.run_dir), "--recount"])
        said = capsys.readouterr().err
        path.write_bytes(whole)
        if path.suffix == ".jsonl":
            assert status in (0, 1), file  # a line that is damaged is left out
            assert text == "" or str(path) in said
            continue
        assert status == (0 if file == "state.json" else 2), file  # it is made again
        (line,) = said.splitlines()
        assert str(path) in line
