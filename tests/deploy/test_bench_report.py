"""The report of a comparison, from fabricated results."""

from pathlib import Path
from typing import Any

import pytest

from deploy.bench.grid import Grid, parse_grid
from deploy.bench.report import write_report
from deploy.bench.results import Result, write_result
from deploy.bench.tables import over

TASKS, TRAINED = ["push", "pick", "stack"], ["push", "pick"]


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return parse_grid(["suite=toy", "method=sequential,ewc,multitask:1", "seeds=3",
                       f"out={tmp_path}"])  # fmt: skip


def make_result(name: str, seed: int, final: int, rows: tuple[int, ...] = (0, 1, 2)) -> Result:
    """100 trials a cell: 40 at first, 60 once trained, `final` and 10 more a seed in the end."""
    successes = [[40, 40, 50], [60, 45, 50], [final + 10 * seed, 60, 55]]
    measured = [[100 * (row in rows)] * len(TASKS) for row in range(3)]
    counts = {"successes": [s if r in rows else [0] * 3 for r, s in enumerate(successes)],
              "trials": measured}  # fmt: skip
    under = {"protocol": "disjoint", "temperature": 1.0, "success": "once"}
    summary: dict[str, Any] = {
        "suite": "toy", "seed": seed, "tasks": TASKS, "train_tasks": TRAINED,
        "held_out_tasks": ["stack"], "matrix": counts | under, "restarts": {"agent": 1},
        "settings": {"model": "micro", "versions": {"python": "3"}, "temperature": 1.0},
        "episodes": {"trained": 900, "filtered": 100, "eval": 900, "aborted": 0},
    }  # fmt: skip
    cost = {"environment_steps": 12_000, "chunk_forwards": 4_000, "learned_chunks": 2_000,
            "wall_s": 600.0, "own_wall_s": 300.0, "own_episodes": 9, "starts": 3}  # fmt: skip
    curve = [[0, 1, 3, 8], [0, 2, 5, 8], [1, 3, 4, 8], [1, 4, 6, 8]]
    return Result(name, [], {"cores": 2}, {}, curve, summary, {}, [], cost)


def write_all(grid: Grid, skip: tuple[str, ...] = ()) -> None:
    for cell in grid.cells:
        if cell.name not in skip:
            rows = (0, 2) if cell.method == "multitask" else (0, 1, 2)
            final = 50 if cell.method == "sequential" else 60
            write_result(grid.results, make_result(cell.name, cell.seed, final, rows))


def row_of(text: str, name: str) -> list[str]:
    """The cells of the first table's row of that name."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_report_has_every_method_with_its_interval_over_seeds(grid: Grid) -> None:
    write_all(grid)
    paths = write_report(grid)
    assert [path.name for path in paths] == ["report.md", "curves.png"]
    assert all(0 < path.stat().st_size < 200_000 for path in paths)
    text = paths[0].read_text()
    assert "Incomplete" not in text
    assert "method=sequential,ewc,multitask:1 seeds=3" in text
    # Final success 55, 60, 65: mean 60, SE 5 / sqrt 3, t(2 degrees) = 4.303.
    final, gain, nbt = row_of(text, "sequential")[2:5]
    assert final == "60.0 ± 2.9 [47.6, 72.4]"
    assert gain == "+20.0 ± 2.9 [7.6, 32.4]"
    assert nbt == "+0.0 ± 5.8 [-24.8, 24.8]"  # 60 when learned, then 50, 60, 70
    assert row_of(text, "base")[:3] == ["base", "3", "40.0 ± 0.0 [40.0, 40.0]"]
    assert row_of(text, "multitask †")[1] == "1"
    assert row_of(text, "multitask †")[4] == "–"  # no row between the first and the last
    assert "| push | **60% (180/300)** | 45% (135/300) | 50% (150/300) |" in text
    assert "| ewc | 1,000 | 900 | 0 | 12,000 | 4,000 | 2,000 | 10.0 | 5.0 | 1 | 3 |" in text


def test_a_report_names_what_is_missing_and_marks_what_is_fewer(grid: Grid) -> None:
    write_all(grid, skip=("ewc-seed2", "multitask-seed0"))
    text = write_report(grid)[0].read_text()
    assert "**Incomplete.** Not measured: `multitask-seed0`, `ewc-seed2`." in text
    assert row_of(text, "ewc †")[1] == "2"
    assert "### multitask" not in text


def test_a_report_of_nothing_is_a_list_of_what_is_missing(grid: Grid) -> None:
    (path,) = write_report(grid)
    assert "`sequential-seed0`" in path.read_text()


def test_one_seed_has_the_error_of_its_trials_and_says_so() -> None:
    assert over([(0.5, 0.05)]) == "50.0 (± 5.0)"
    assert over([(0.5, 0.05), None]) == over([]) == "–"
    assert over([(0.1, 0.0), (0.1, 0.0)], "+") == "+10.0 ± 0.0 [10.0, 10.0]"
