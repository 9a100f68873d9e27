"""The tabletop report: its arithmetic, and a whole report from fabricated results."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agent.process.json_files import DamagedFile
from benchmarks.tabletop_grpo.cells import (
    RESULTS,
    RUNS,
    SFT_RATES,
    Cell,
    declare_cells,
    sft_name,
    tabletop_tasks,
)
from benchmarks.tabletop_grpo.figures import (
    Point,
    Verdict,
    change,
    change_at,
    combine,
    judge_alone,
    judge_control,
    judge_gain,
)
from benchmarks.tabletop_grpo.report import write_report
from benchmarks.tabletop_grpo.runner import run_cells
from deploy.bench.results import (
    Result,
    ResultError,
    read_result,
    read_results,
    write_result,
)
from deploy.local.seeds import over_seeds
from deploy.local.settings import compose_run
from deploy.local.statistics import Matrix, Rate

TRAINED, HELD_OUT = ["pick", "stack", "push"], ["open", "press"]
CURVE = [Point(0, 0.4, (0.0, 0.0)), Point(1, 0.6, (-0.1, 0.03)), Point(2, 0.8, (-0.3, 0.04))]


def make_result(
    cell: Cell, trained: list[str], gain: int, others: int, greedy: bool = True
) -> Result:
    """Every task at 40 of 100; a task gains `gain` when it is trained and `others` at any row."""
    tasks = [*trained, *(task for task in TRAINED + HELD_OUT if task not in trained)]
    rows = len(trained) + 1
    successes = [
        [40 + (gain if task in trained[:row] else others) * (row > 0) for task in tasks]
        for row in range(rows)
    ]
    counts = {"successes": successes, "trials": [[100] * len(tasks)] * rows}
    measured = [[50 * (greedy and row in (0, rows - 1) and t in trained) for t in tasks]
                for row in range(rows)]  # fmt: skip
    greedy_counts = {
        "successes": [
            [s * n // 100 for s, n in zip(*pair, strict=True)]
            for pair in zip(successes, measured, strict=True)
        ],
        "trials": measured,
    }
    summary: dict[str, Any] = {
        "suite": "tabletop", "seed": int(cell.name[-1]) if "seed" in cell.name else 0,
        "settings": {"algorithm": {"method": "grpo"}, "evaluation": {"slots_per_state": 2},
                     "temperature": 1.0, "micro_batch": 32, "model": "nano", "versions": {}},
        "tasks": tasks, "train_tasks": trained, "held_out_tasks": tasks[len(trained):],
        "matrix": counts, "greedy": {"matrix": greedy_counts}, "base_avg": 0.4, "final_avg": 0.6,
        "episodes": {"collected": 9, "eval": 4, "lost": 0, "duplicated": 0},
        "swaps": {"dropped_requests": 0}, "wall_s": 1800.0,
    }  # fmt: skip
    curve = [[task, update, 3 + update, 8] for task in range(len(trained)) for update in (1, 2, 3)]
    times_s = {"wait": 60.0, "learn": 30.0, "publish": 1.0}
    machine = {"cores": 2, "processor": "x86_64"}
    return Result(cell.name, list(cell.overrides), machine, times_s, curve, summary)


def write_all(folder: Path, skip: tuple[str, ...] = ()) -> None:
    """Results in which GRPO learns and forgets nothing, and fine-tuning forgets."""
    for cell in declare_cells(TRAINED, HELD_OUT):
        if cell.name in skip:
            continue
        if cell.name.startswith("grpo"):
            result = make_result(cell, TRAINED, gain=30, others=2)
        elif cell.name.startswith("alone"):
            result = make_result(cell, [cell.name.removeprefix("alone-")], gain=30, others=20)
        elif cell.needs_demonstrations:
            on, _, length = cell.name.rpartition("-")
            top = 2 if on == f"sft-lr{SFT_RATES[0]}" else 5
            if cell.name.startswith("sft-alone"):
                result = make_result(cell, [length], 40, -10, greedy=False)
            else:
                iterations = int(length.removesuffix("it"))
                result = make_result(
                    cell, TRAINED[:1], top * iterations, -4 * iterations, greedy=False
                )
        else:
            result = make_result(cell, TRAINED, gain=0, others=0)
        write_result(folder, result)


def test_equal_success_is_interpolated_where_it_is_first_reached() -> None:
    at = change_at(CURVE, 0.7)
    assert at == pytest.approx((-0.2, (0.015**2 + 0.02**2) ** 0.5))
    assert change_at(CURVE, 0.6) == pytest.approx(CURVE[1].change)
    falling = [*CURVE, Point(4, 0.5, (-0.5, 0.1)), Point(8, 0.9, (-0.9, 0.1))]
    assert change_at(falling, 0.7) == pytest.approx(at)


def test_success_never_reached_has_no_price_and_the_base_costs_nothing() -> None:
    assert change_at(CURVE, 0.81) is None
    assert change_at(CURVE, 0.3) == (0.0, 0.0)
    assert change_at([], 0.5) is None


def test_what_was_not_measured_stays_unknown() -> None:
    matrix = Matrix(["a", "b"], ["a"], ["b"], [[Rate(1, 4), Rate(0, 0)], [Rate(2, 4), Rate(1, 4)]])
    assert change(matrix, 1, ["a", "b"]) is None
    assert change(matrix, 1, ["a"]) == pytest.approx((0.25, (3 / 64 + 4 / 64) ** 0.5))
    assert combine((1.0, (0.5, 0.1)), (-1.0, None)) is None


def test_a_verdict_says_by_how_much() -> None:
    gain = over_seeds([(0.28, 0.02), (0.20, 0.02)])
    assert gain is not None
    missed = judge_gain("gain", gain, target=0.25)
    assert (missed.is_met, missed.text) == (False, "MISSED by 1.0 points")
    assert judge_gain("gain", gain, target=0.24).is_met  # exactly there
    assert Verdict("wall", "60", "50", 10.0, "min").text == "met by 10.0 min"


def test_a_control_may_move_within_its_noise_only() -> None:
    assert judge_control("lr0", (0.0, 0.0)).is_met
    assert judge_control("permuted", (0.04, 0.03)).is_met
    assert not judge_control("permuted", (0.06, 0.03)).is_met


def test_a_task_that_gained_nothing_decides_nothing_about_the_others() -> None:
    assert judge_alone("a", (0.3, 0.05), (0.1, 0.02)).is_met
    assert not judge_alone("a", (0.3, 0.05), (0.2, 0.02)).is_met
    undecided = judge_alone("a", (-0.1, 0.05), (-0.2, 0.02))
    assert (undecided.is_met, undecided.text) == (False, "UNDECIDED")


def test_every_cell_composes_with_a_name_of_its_own() -> None:
    trained, held_out = tabletop_tasks()
    cells = declare_cells(trained, held_out)
    assert len({cell.name for cell in cells}) == len(cells) == 3 + 2 + 2 * (len(trained) - 1) + 12
    for cell in (cell for cell in cells if cell.name in ("permuted", f"alone-{trained[-1]}",
                                                         sft_name("1e-3", 4))):  # fmt: skip
        suite = compose_run(cell.overrides).processes["learner"]["suite"]
        assert {*suite["train_tasks"], *suite["held_out_tasks"]} == {*trained, *held_out}


def test_a_report_from_all_cells(tmp_path: Path) -> None:
    write_all(tmp_path / "results")
    paths = write_report(TRAINED, HELD_OUT, tmp_path / "results", tmp_path)
    assert [path.suffix for path in paths] == [".md", ".png", ".png"]
    assert all(0 < path.stat().st_size < 150_000 for path in paths)
    text = paths[0].read_text()
    assert "Not measured" not in text
    assert "**met by 5.0 points**" in text  # 30 points of gain against 25
    assert "| seed 0 | seed 1 | seed 2 | mean |" in text
    assert "others +20.0" in text  # more than half of 30: the suite check is missed
    assert f"SFT, {SFT_RATES[0]} | never reached: 56% at best, after 8 it. | -32.0" in text
    # 30 points on the new task are reached at length 6 of a straight line of 4 points a length
    assert f"SFT, {SFT_RATES[1]} | 70 | -24.0" in text
    assert f"fine-tuning on {TRAINED[0]} | drop ≥ 15 | +32.0" in text
    assert f"fine-tuning on {TRAINED[1]} | drop ≥ 15 | +10.0" in text


def test_a_report_names_the_cells_that_are_missing(tmp_path: Path) -> None:
    skip = ("grpo-seed2", "lr0", "alone-push", *(sft_name(rate, 8) for rate in SFT_RATES))
    write_all(tmp_path / "results", skip)
    text = write_report(TRAINED, HELD_OUT, tmp_path / "results", tmp_path)[0].read_text()
    assert "over 2 of 3 seeds" in text
    assert all(f"`{name}`" in text for name in skip)


def test_a_report_of_nothing_is_only_a_list_of_what_is_missing(tmp_path: Path) -> None:
    paths = write_report(TRAINED, HELD_OUT, tmp_path, tmp_path)
    assert [path.name for path in paths] == ["tabletop-grpo.md"]
    assert "`grpo-seed0`" in paths[0].read_text()


def test_results_come_back_as_written_and_nothing_else_is_taken(tmp_path: Path) -> None:
    cell = declare_cells(TRAINED, HELD_OUT)[0]
    result = make_result(cell, TRAINED, gain=30, others=2)
    path = write_result(tmp_path, result)
    assert read_result(path) == result
    assert read_results(tmp_path, [cell.name, "other"]) == ({cell.name: result}, ["other"])
    (tmp_path / "other.json").write_text(path.read_text())
    with pytest.raises(ResultError, match="holds the result of grpo-seed0"):
        read_result(tmp_path / "other.json")
    (tmp_path / "other.json").write_text(json.dumps({"name": "other"}))
    with pytest.raises(DamagedFile, match="remove it to have the cell's result made again"):
        read_result(tmp_path / "other.json")


def test_committed_results_are_kept_until_a_setting_of_theirs_changes(tmp_path: Path) -> None:
    """Also where a later release added settings: hours of runs are not thrown away for a name."""
    cells = [c for c in declare_cells(*tabletop_tasks()) if (RESULTS / f"{c.name}.json").is_file()]
    assert cells
    run_cells(cells, RUNS, RESULTS, Console(quiet=True))
    changed = json.loads((RESULTS / f"{cells[0].name}.json").read_text())
    changed["summary"]["settings"]["algorithm"]["learning_rate"] = 0.5
    (tmp_path / f"{cells[0].name}.json").write_text(json.dumps(changed))
    with pytest.raises(ResultError, match="other settings"):
        run_cells(cells[:1], RUNS, tmp_path, Console(quiet=True))
